"""Four fake CPU devices, quick compilation, strict ranks and quiet absl flags, before anything imports JAX."""

import os
import tempfile
from importlib.metadata import version

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled once a session, for the processes that tests start too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="universeg_jax_test_"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Compiling takes most of the time, and the last two halve it. jaxlib 0.11 has no older emitters, and refuses the flag.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" else "",
    ]
)

import jax
from absl import flags
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()

# Derandomised, so that a failure is seen by everybody; no deadline, because a first example compiles.
settings.register_profile(
    "default", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="module")
def forget_what_was_compiled():
    """A compiled function holds some twenty memory maps; the 65,530 that Linux gives a process end within the suite."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A dataset of bright discs for each role."""
    from tests.fixtures import build_discs

    path = tmp_path_factory.mktemp("data")
    build_discs(path, "train_discs", "train_open", count=20)
    build_discs(path, "val_discs", "val", count=8, seed=1)
    build_discs(path, "test_discs", "test", count=8, seed=2)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of a tiny model: parameters alone, as packaged or converted weights are."""
    from tests.fixtures import tiny_config
    from universeg_jax.checkpoints import store
    from universeg_jax.configuration import to_dict
    from universeg_jax.model.factory import build_model, init_params

    path, config = tmp_path_factory.mktemp("weights") / "tiny", tiny_config()
    params = init_params(build_model(config.model), 0)
    store.write_params(path, params, {"config": to_dict(config), "lineage": {}})
    return path


@pytest.fixture(scope="session")
def predictor(checkpoint):
    from universeg_jax.prediction.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint)
