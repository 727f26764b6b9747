"""Many clients of one server process, which is then killed: nothing is lost, and nobody sees another's image."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.annotation.fixtures import image_project
from tests.serving.test_app import parts, png
from universeg_jax.annotation.session import Session
from universeg_jax.readers.images import read_label

ROOT = Path(__file__).parents[2]
CLIENTS, SECONDS = 50, 60


def serve(path: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "universeg_jax.cli", "serve", str(path), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 300
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/info/", timeout=60).raise_for_status()
            return process
        except httpx.TransportError:
            assert process.poll() is None
            assert time.time() < deadline
            time.sleep(0.2)


class Client(threading.Thread):
    """Labels an image of its own again and again, and has images of a size of its own predicted."""

    def __init__(self, number: int, url: str, until: float):
        super().__init__()
        self.number, self.url, self.until = number, url, until
        self.seconds: list[float] = []
        self.statuses: Counter = Counter()
        self.accepted: np.ndarray | None = None
        self.fault = ""

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.url, timeout=600) as http:
                while time.time() < self.until and not self.fault:
                    self.round(http)
        except Exception as error:
            self.fault = repr(error)

    def ask(self, http: httpx.Client, method: str, path: str, **options) -> httpx.Response:
        start = time.time()
        reply = http.request(method, path, **options)
        self.seconds.append(time.time() - start)
        self.statuses[reply.status_code] += 1
        assert reply.status_code == 200, reply.text
        return reply

    def round(self, http: httpx.Client) -> None:
        rng = np.random.default_rng()
        name, shape = f"p{self.number}_0", (16 + self.number, 80 - self.number)
        mask = rng.integers(0, 2, (20, 30))
        mask[0, 0] = 1
        self.ask(http, "PUT", "/datastore/label", params={"image": name}, files={"label": ("x.png", png(mask))})
        self.accepted = mask
        stored = self.ask(http, "GET", "/datastore/label", params={"label": name, "tag": "final"})
        np.testing.assert_array_equal(read_label(stored.content), mask)
        image = png(rng.integers(0, 255, shape))
        created = self.ask(http, "PUT", "/session/", files={"files": (f"mine{self.number}.png", image)}).json()
        identity = created["session_id"]
        assert self.ask(http, "GET", f"/session/{identity}").json()["name"] == f"mine{self.number}"
        reply = self.ask(http, "POST", "/infer/universeg", params={"session_id": identity})
        found = Image.open(BytesIO(parts(reply)["image"][1]))
        assert found.size == shape[::-1], "the mask of another client's image"
        self.ask(http, "DELETE", f"/session/{identity}")
        sample = self.ask(http, "POST", "/activelearning/order", json={"client_id": str(self.number)}).json()
        if sample:
            reply = self.ask(http, "POST", "/infer/universeg", params={"image": sample["id"]})
            assert parts(reply)["image"][0] == f"{sample['id']}.png"


@pytest.mark.slow
def test_fifty_clients_for_a_minute_and_a_kill(tmp_path, checkpoint):
    path, _ = image_project(tmp_path, count=60, checkpoint=str(checkpoint))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(path, port)
    try:
        until = time.time() + SECONDS
        threads = [Client(i, f"http://127.0.0.1:{port}", until) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [thread.fault for thread in threads if thread.fault] == []
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    times = np.concatenate([thread.seconds for thread in threads])
    numbers = {"requests": len(times), "median_s": float(np.median(times)), "p95_s": float(np.quantile(times, 0.95))}
    print(json.dumps(numbers))
    with Session(path) as session:
        session.check_sound()
        for thread in threads:
            np.testing.assert_array_equal(session.mask(f"p{thread.number}_0"), thread.accepted)
        assert len(session.labelled()) == CLIENTS
    again = serve(path, port)
    try:
        stats = httpx.get(f"http://127.0.0.1:{port}/datastore/", timeout=60).json()
        assert stats["completed"] == CLIENTS
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait()
