"""Four fake CPU devices, strict ranks and quiet absl flags, before anything imports JAX."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled once a session, for the processes that tests start too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="universeg_jax_test_"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

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
