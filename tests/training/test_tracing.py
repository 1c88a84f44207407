"""Steps that cannot be traced. tests/parallel/test_processes.py traces steps in one process and in two."""

import pytest

from vidformers.errors import ConfigError
from vidformers.training.config import TrainConfig
from vidformers.training.tracing import Trace


@pytest.mark.quick
@pytest.mark.parametrize(
    "steps, words",
    [
        ((3,), "a first and a last step"),
        ((1.5, 2), "a tuple, each element an integer"),
        (("a", "b"), "a tuple, each element an integer"),
    ],
)
def test_steps_that_are_not_a_pair_of_whole_numbers_are_refused(steps, words):
    with pytest.raises(ConfigError, match=rf"train\.profile_steps=.* must be {words}"):
        TrainConfig(profile_steps=steps)


@pytest.mark.parametrize("steps", [(0, 1), (3, 2), (4, 6)])
def test_steps_that_the_run_does_not_have_are_refused(steps, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.profile_steps=.* from 1 to 5"):
        Trace(tmp_path, steps, total=5)
