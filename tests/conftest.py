"""Eight CPU devices, a compilation cache that is kept between runs, and the order of the tests."""

import os
import random
import signal
from importlib.metadata import version

# Without optimisation: most programs of the tests run once, and compiling them takes most of the time (see
# `tiny.QUICK`). XLA aborts on a flag that it does not know: that of jaxlib 0.11 has no fusion emitters to switch off.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags
from command import CACHE
from hypothesis import settings

jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
flags.FLAGS.mark_as_parsed()  # Orbax and Grain read absl flags, which pytest does not parse
settings.register_profile("few", deadline=None, derandomize=True, max_examples=4)
settings.load_profile("few")

# The stems of the slowest files, the slowest first.
SLOW = (
    "test_devices",
    "test_resume",
    "test_explain",
    "test_models",
    "test_processes",
    "test_vtn",
    "test_export",
    "test_configs",
    "test_mistakes",
)


@pytest.hookimpl(optionalhook=True)  # the hook exists with pytest-xdist only
def pytest_xdist_auto_num_workers():
    """Returns the number of workers: one more than cores, since many tests wait for processes that they started."""
    return os.cpu_count() + 1


def pytest_addoption(parser):
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the files of tests in a random order")


def pytest_collection_modifyitems(config, items):
    """Moves the slowest files to the front, so that no worker starts one of them last. `--shuffle` mixes the files."""
    seed = config.getoption("--shuffle")
    if seed is None:
        items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))
    else:
        items.sort(key=lambda item: random.Random(f"{seed} {item.path}").random())


@pytest.fixture
def float64():
    """Enables double precision for a test that shows an equality far above rounding errors."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Frees the programs that a file of tests has compiled. A process would otherwise grow to 4 GB."""
    yield
    jax.clear_caches()


@pytest.fixture
def hangup_is_not_ignored():
    """Under nohup, the tests and the programs that they start ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
