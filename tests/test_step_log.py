"""What is logged when, and what is refused."""

import numpy as np
import pytest

from tests.fixtures import tiny_config
from universeg_jax.reporting import read_json_lines
from universeg_jax.step_log import NotFinite, StepLog

NAMES = ("loss", "dice", "grad_norm", "param_norm", "learning_rate")


def sums(losses=(0.5, 0.5), **values):
    pairs = {name: (np.float32(values.get(name, 1.0)), np.float32(1)) for name in NAMES}
    return pairs | {"episodes": np.arange(4, 4 + len(losses)), "losses": np.array(losses)}


def test_a_step_is_written_once_the_next_was_dispatched(tmp_path):
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
def test_what_is_not_finite_names_the_episodes_it_may_come_from(tmp_path, losses, values, episodes):
    log = StepLog(tmp_path, tiny_config(), first_step=0)
    log.dispatched(0, sums(losses, **values), waited=0.0)
    with pytest.raises(NotFinite, match="(nan|inf).* at step 0, episodes? .*lower config.optimizer") as caught:
        log.flush()
    assert caught.value.episodes == episodes
    assert not read_json_lines(tmp_path / "metrics.jsonl")
