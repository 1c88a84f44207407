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
settings.register_profile("few", deadline=None, derandomize=True, max_examples=4)
settings.load_profile("few")

SLOW = ("test_models", "test_resume", "test_step", "test_attention", "test_dictionary", "test_distributed")


@pytest.hookimpl(optionalhook=True)  # so that the tests run without xdist, too
def pytest_xdist_auto_num_workers():
    """One more than cores, since tests wait for processes that they started."""
    return os.cpu_count() + 1


def pytest_collection_modifyitems(items):
    """The slowest files first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture
def float64():
    """Double precision for one test, where an equality is to be seen far above rounding."""
    with jax.enable_x64(True):
        yield
