"""SIGKILL at any instant: the project opens, every accepted label is there, byte for byte, and no half file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.annotation.fixtures import image_project, volume_project
from universeg_jax.annotation.session import Session

ROOT = Path(__file__).parents[2]
KILLS = 20
CHILD = """
import os, random, sys
import numpy as np
from universeg_jax.annotation.session import Session

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + " .\\n").encode())

def work(seed):
    random.seed(seed)
    with Session({path!r}) as session:
        tell("open", os.getpid())
        while True:
            status = session.status()
            kind = random.choice(["accept", "accept", "undo", "redo"])
            if kind == "accept":
                unit = random.choice(session.units())
                mask = np.random.default_rng(random.randrange(1 << 30)).integers(0, 2, session.image(unit).shape)
                mask.flat[0] = 1
                tell("begin accept", unit, *mask.ravel())
                session.accept(unit, mask)
            elif status[kind]:
                tell("begin", kind)
                getattr(session, kind)()
            else:
                continue
            tell("end")

for line in sys.stdin:  # a process of its own for each, which is killed
    if not (pid := os.fork()):
        work(int(line))
    os.waitpid(pid, 0)
    os.write(1, b"\\ndead\\n")
"""


class Model:
    """What a session must hold after the actions of a child: past, present and future labels by unit."""

    def __init__(self):
        self.past, self.now, self.future = [], {}, []

    def after(self, line: str) -> "Model":
        new = Model()
        new.past, new.now, new.future = list(self.past), dict(self.now), list(self.future)
        words = line.split()
        if words[1] == "undo":
            new.future, new.now = [new.now, *new.future], new.past.pop()
        elif words[1] == "redo":
            new.past.append(new.now)
            new.now, *new.future = new.future
        else:
            new.past.append(new.now)
            new.now, new.future = {**new.now, words[2]: np.array(words[3:-1], int)}, []
        return new

    def matches(self, session: Session) -> bool:
        if (len(self.past), len(self.future)) != tuple(session.status()[key] for key in ("undo", "redo")):
            return False
        return session.labelled() == [unit for unit in session.units() if unit in self.now] and all(
            np.array_equal(session.mask(unit).ravel(), mask) for unit, mask in self.now.items()
        )


@pytest.mark.parametrize("kind", [image_project, volume_project])
def test_twenty_kills_lose_at_most_the_stroke_in_hand(tmp_path, kind):
    path, _ = kind(tmp_path)
    model, rng, unfinished = Model(), random.Random(0), 0
    command = [sys.executable, "-c", CHILD.format(path=str(path))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        for number in range(KILLS // 2):
            launcher.stdin.write(f"{number}\n")
            launcher.stdin.flush()
            opened = launcher.stdout.readline().split()
            assert opened[0] == "open"
            lines = [launcher.stdout.readline() for _ in range(2 * rng.randrange(6))]
            time.sleep(rng.uniform(0, 0.1))
            os.kill(int(opened[1]), signal.SIGKILL)
            while (line := launcher.stdout.readline()) != "dead\n":
                assert line, "the launcher died"
                if line.endswith(" .\n"):
                    lines.append(line)
            for begin, end in zip(lines[::2], lines[1::2], strict=False):
                assert end == "end .\n"
                model = model.after(begin)
            with Session(path) as session:
                session.check_sound()
                if len(lines) % 2:  # the stroke in hand: done, or not begun
                    unfinished += 1
                    model = model if model.matches(session) else model.after(lines[-1])
                assert model.matches(session), number
                check_files(session, path)
        launcher.stdin.close()
    assert unfinished


def check_files(session: Session, path: Path) -> None:
    """Every label in labels/ and slices/ is byte for byte the one that was accepted, and no file is half."""
    assert not list(path.rglob(".tmp*"))
    for unit in session.labelled():
        mark, file = session.mark_of(unit), session.project.label_file(unit)
        whole = file if file.exists() else session.project.label_file(unit.split("/")[0])
        assert (path / "history" / f"{mark.label}{''.join(whole.suffixes)}").read_bytes() == whole.read_bytes()
