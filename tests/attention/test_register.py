"""What `register` of attention schemes refuses."""

import pytest
from schemes import SCHEMES

from vidformers.attention.registry import register
from vidformers.attention.scheme import Scheme

pytestmark = pytest.mark.quick


def test_a_name_is_registered_once():
    entry = next(iter(SCHEMES.values()))
    with pytest.raises(ValueError, match="registered twice"):
        register(entry.name, entry.make, grid=entry.grid, expected_keys=entry.expected_keys)


def test_a_whole_scheme_that_reads_neighbours_is_not_registered():
    class Contradiction(Scheme):
        reads_neighbours = True

    with pytest.raises(ValueError, match="'contradiction' has reads_neighbours=True.* Set whole=False"):
        register("contradiction", Contradiction, grid=(4, 2, 2), expected_keys=lambda grid, *place: [place])
    assert "contradiction" not in SCHEMES


def test_a_causal_scheme_with_class_tokens_is_not_registered():
    class Causal(Scheme):
        causal = True

    with pytest.raises(ValueError, match="'causal' is causal.* class_tokens="):
        register("causal", Causal, grid=(4, 2, 2), expected_keys=lambda grid, *place: [place])
    assert "causal" not in SCHEMES
