"""A wait is named if it is long, and only then."""

import subprocess
import sys
import time

import pytest

from universeg_jax.reports.waiting import say_if_compiling, say_if_slow


@pytest.mark.parametrize(("seconds", "said"), [(0.0, ""), (0.3, "reading\n")])
def test_a_slow_wait_is_named(capsys, seconds, said):
    with say_if_slow("reading", 0.1):
        time.sleep(seconds)
    assert capsys.readouterr().err == said


def test_a_failure_inside_ends_the_wait(capsys):
    with pytest.raises(ValueError, match="broken"), say_if_slow("reading", 0.1):
        raise ValueError("broken")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_compiling_has_its_usual_time(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["universeg_jax.reports.waiting"].say_if_slow.__wrapped__, "__defaults__", (0.0,))
    with say_if_compiling("the model", "half a minute"):
        time.sleep(0.2)
    assert "compiling the model for this machine: half a minute on two cores" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["universeg_jax.cli", "universeg_jax.commands.quickstart", "train"])
def test_commands_silence_the_alarm_of_xla_before_jax_is_imported(module):
    """JAX would set the level to 1, at which XLA asks to file a bug about a slow compilation."""
    code = f"import os; os.environ.pop('TF_CPP_MIN_LOG_LEVEL', None); import {module}"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "3"
