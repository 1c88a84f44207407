"""Eight devices on the CPU, compilations kept between runs, and absl flags that count as parsed."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags
from command import CACHE
from hypothesis import settings

jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
flags.FLAGS.mark_as_parsed()
settings.register_profile("few", deadline=None, derandomize=True, max_examples=6)
settings.load_profile("few")


@pytest.fixture
def float64():
    """Double precision for one test, where an equality is to be seen far above rounding."""
    with jax.enable_x64(True):
        yield
