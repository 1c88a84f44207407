"""Rare classes: the order that draws them more often, and their weights."""

from collections import Counter

import numpy as np
import pytest

from input_pipeline import Record
from input_pipeline.balance import class_counts, class_weights, max_draws, training_order, whole_shares


def clips_of(*labels):
    """Returns clips with the class number, or the tuple of class numbers, of each."""
    return tuple(
        Record(
            id,
            f"{id}.mp4",
            label if isinstance(label, int) else -1,
            id,
            labels=None if isinstance(label, int) else label,
        )
        for id, label in enumerate(labels)
    )


UNEVEN = clips_of(*[0] * 40, *[1] * 15, *[2] * 5)  # 60 clips
SEVERAL = clips_of(*[(0,)] * 20, *[(0, 1)] * 6, *[(0, 1, 2)] * 3, (2,), *[()] * 10)


def ids(records, power, passes, seed=3, num_classes=3):
    order = training_order(records, num_classes, power, seed)
    return [[order[number * len(records) + i].id for i in range(len(records))] for number in range(passes)]


@pytest.mark.quick
@pytest.mark.parametrize("power, expected", [(1.0, (20, 20, 20)), (0.5, (28, 17, 10)), (1e-9, (40, 15, 5))])
def test_a_pass_draws_each_class_by_the_power_of_its_count(power, expected):
    wanted = 60 * np.array([40, 15, 5]) ** (1 - power) / (np.array([40, 15, 5]) ** (1 - power)).sum()
    for drawn in ids(UNEVEN, power, 3):
        counts = Counter(UNEVEN[id].label for id in drawn)
        assert all(abs(counts[number] - wanted[number]) < 1 for number in range(3)) and sum(counts.values()) == 60
    assert power != 1.0 or tuple(counts[number] for number in range(3)) == expected


@pytest.mark.quick
def test_every_clip_of_a_class_is_drawn_before_one_is_drawn_again():
    drawn = [id for one_pass in ids(UNEVEN, 1.0, 4) for id in one_pass]
    for number, size in enumerate((40, 15, 5)):
        of_class = Counter(id for id in drawn if UNEVEN[id].label == number)
        assert len(of_class) == size and max(of_class.values()) - min(of_class.values()) <= 1
    passes = ids(UNEVEN, 1.0, 2)
    assert passes[0] != passes[1] and passes[0] != ids(UNEVEN, 1.0, 1, seed=4)[0]
    assert max(Counter(one_pass).most_common(1)[0][1] for one_pass in passes) <= max_draws(UNEVEN, 3, 1.0) == 5


@pytest.mark.quick
def test_a_clip_counts_as_its_rarest_label_and_no_label_is_a_class():
    (drawn,) = ids(SEVERAL, 1.0, 1)
    counts = Counter(SEVERAL[id].labels for id in drawn)
    # The counts of the classes are 29, 9 and 4, and 10 clips have no label.
    share = np.array([20 / 29, 6 / 9, 4 / 4, 10 / 10])
    actual = [counts[(0,)], counts[(0, 1)], counts[(0, 1, 2)] + counts[(2,)], counts[()]]
    assert sum(actual) == 40 and np.abs(actual - 40 * share / share.sum()).max() < 1
    assert class_counts(SEVERAL, 4).tolist() == [29, 9, 4, 0]


@pytest.mark.quick
def test_without_balance_the_order_is_that_of_a_shuffle():
    import grain

    expected = grain.MapDataset.source(range(60)).seed(3).shuffle().repeat()[:120]
    assert [id for one_pass in ids(UNEVEN, 0.0, 2) for id in one_pass] == list(expected)
    assert max_draws(UNEVEN, 3, 0.0) == 1


@pytest.mark.quick
@pytest.mark.parametrize("seed", range(20))
def test_whole_shares_add_up_and_are_nearly_proportional(seed):
    rng = np.random.default_rng(seed)
    weights, total = rng.random(int(rng.integers(1, 40))) ** 8, int(rng.integers(40, 200))
    numbers = whole_shares(weights, total)
    assert numbers.sum() == total and numbers.min() >= 1
    shares = weights / weights.sum() * total
    if shares.min() >= 1:
        assert np.abs(numbers - shares).max() < 1
    assert (np.diff(numbers[np.argsort(weights, kind="stable")]) >= 0).all(), "in the order of the weights"


@pytest.mark.quick
@pytest.mark.parametrize("records, num_classes", [(UNEVEN, 3), (UNEVEN, 5), (SEVERAL, 3)])
def test_weights_are_a_power_of_the_count_with_a_mean_of_one_over_the_labels(records, num_classes):
    counts = class_counts(records, num_classes)
    for power in (0.5, 1.0):
        weights = class_weights(counts, power)
        assert weights.dtype == np.float32
        np.testing.assert_allclose((counts * weights).sum() / counts.sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(weights / weights[0], (counts[0] / np.maximum(counts, 1)) ** power, rtol=1e-5)
    np.testing.assert_array_equal(class_weights(counts, 0.0), 1)
