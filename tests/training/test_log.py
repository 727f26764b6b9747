"""What is logged when, and what is refused."""

import numpy as np
import pytest

from tests.fixtures import tiny_config
from universeg_jax.reports.files import read_json_lines
from universeg_jax.training import log
from universeg_jax.training.log import NotFinite, Profile, StepLog

NAMES = ("loss", "dice", "grad_norm", "param_norm", "learning_rate")


def sums(losses=(0.5, 0.5), **values):
    pairs = {name: (np.float32(values.get(name, 1.0)), np.float32(1)) for name in NAMES}
    return pairs | {"episodes": np.arange(4, 4 + len(losses)), "losses": np.array(losses)}


def test_a_step_is_written_after_the_next_is_dispatched(tmp_path):
    log = StepLog(tmp_path, tiny_config(), first_step=0)
    for step in range(3):
        log.dispatched(step, sums(), waited=0.0)
        assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == list(range(step))
    log.close()
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 3


@pytest.mark.parametrize(
    ("losses", "values", "episodes"),
    [
        ((0.5, np.nan, 0.5), {"loss": np.nan}, [5]),
        ((0.5, 0.5), {"grad_norm": np.inf}, [4, 5]),
        ((0.5, 0.5), {"param_norm": np.inf}, [4, 5]),
    ],
)
def test_an_error_of_not_finite_values_names_its_episodes(tmp_path, losses, values, episodes):
    log = StepLog(tmp_path, tiny_config(), first_step=0)
    log.dispatched(0, sums(losses, **values), waited=0.0)
    with pytest.raises(NotFinite, match="(nan|inf).* at step 0, episodes? .*lower config.optimizer") as caught:
        log.flush()
    assert caught.value.episodes == episodes
    assert not read_json_lines(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("steps", "begins", "said"),
    [
        (9, None, "no trace: it needs 11 steps or more"),
        (10, 10, "no trace: it needs 11 steps or more"),
        (11, 10, "trace of 1 step in"),
        (14, 10, "trace of 4 steps in"),
        (15, 10, "trace of 5 steps in"),
        (30, 10, "trace of 5 steps in"),
    ],
)
def test_a_trace_of_five_steps_starts_after_ten(tmp_path, monkeypatch, capsys, steps, begins, said):
    dispatched, calls = 0, []
    monkeypatch.setattr(log.jax.profiler, "start_trace", lambda path: calls.append(dispatched))
    monkeypatch.setattr(log.jax.profiler, "stop_trace", lambda: calls.append(dispatched))
    trace = Profile(tmp_path)
    for dispatched in range(1, steps + 1):
        trace.after(dispatched)
    trace.close()
    assert calls == ([] if begins is None else [begins, min(steps, 15)])
    assert capsys.readouterr().err.splitlines()[0].startswith(said)
