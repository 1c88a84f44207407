"""Rare classes: how often each class occurs, weights of the classes in the loss, and balanced sampling."""

import bisect
import itertools
from collections.abc import Sequence

import grain
import numpy as np

from input_pipeline.annotations import Record


def class_counts(records: Sequence[Record], num_classes: int) -> np.ndarray:
    """Returns the number of clips with each label, (num_classes) ints. A clip with several labels counts for each."""
    labels = [number for record in records for number in record.class_numbers]
    return np.bincount(np.array(labels, int), minlength=num_classes)


def class_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Returns the weight of each class in the loss, (num_classes) float32: its count to the power of -`power`.

    The mean over all labels of the clips is 1, so that weights do not change the scale of the loss. A class without
    clips has the weight of a class with one.
    """
    weights = np.maximum(counts, 1.0) ** -power
    return np.float32(weights * counts.sum() / (counts * weights).sum())


def training_order(records: Sequence[Record], num_classes: int, power: float, seed: int) -> grain.MapDataset:
    """Returns the endless order of training clips. Clip k is a function of `seed` and k alone.

    With a `power` of 0 every pass has each clip once. Otherwise a clip is drawn in proportion to the count of its class
    to the power of -`power`: with 1, all classes are drawn equally often. A clip with several labels belongs to the
    rarest of them, and clips without labels form a class of their own.

    Args:
        records: the training clips.
        num_classes: the number of classes.
        power: from 0 to 1.
        seed: the seed of the order.
    """
    if not power:
        return grain.MapDataset.source(records).seed(seed).shuffle().repeat()
    groups, draws = _draws(records, num_classes, power)
    return BalancedOrder(groups, draws, seed)


def max_draws(records: Sequence[Record], num_classes: int, power: float) -> int:
    """Returns how often a pass of `training_order` draws one clip at most."""
    if not power:
        return 1
    # The draws of a pass may begin in the middle of a cycle over the clips of a class.
    groups, draws = _draws(records, num_classes, power)
    return max((number - 2) // len(group) + 2 for group, number in zip(groups, draws, strict=True))


def _draws(records: Sequence[Record], num_classes: int, power: float) -> tuple[list[list[Record]], list[int]]:
    """Returns the clips of each class, and how often a pass draws the class."""
    counts = class_counts(records, num_classes)
    members: dict[int, list[Record]] = {}
    for record in records:
        # Among labels that are equally rare, the first.
        rarest = min(record.class_numbers, key=lambda number: (counts[number], number), default=-1)
        members.setdefault(rarest, []).append(record)
    groups = sorted(members)
    sizes = np.array([len(members[group]) for group in groups])
    frequencies = np.array([counts[group] if group >= 0 else len(members[group]) for group in groups])
    draws = whole_shares(sizes * frequencies**-power, len(records))
    return [members[group] for group in groups], draws.tolist()


def whole_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers of at least 1 that add up to `total` and are nearly proportional to `weights`.

    Args:
        weights: (n), n at most `total`.
        total: the sum.
    """
    # Rounded, so that machines whose powers differ in the last bit come to the same numbers.
    shares = np.round(weights / weights.sum() * total, 6)
    numbers = np.maximum(np.floor(shares).astype(int), 1)
    missing = total - numbers.sum()
    numbers[np.argsort(numbers - shares, kind="stable")[: max(missing, 0)]] += 1
    for _ in range(-missing):  # the least share is 1, which others must give
        numbers[np.argmax(np.where(numbers > 1, numbers - shares, -np.inf))] -= 1
    return numbers


class BalancedOrder(grain.MapDataset):
    """An endless sequence of clips in which every group is drawn a fixed number of times in each pass.

    A pass has as many draws as there are clips. Clip k is a function of the seed and k alone, as with
    `grain.MapDataset.shuffle`. Within a group all clips are drawn, in random order, before one is drawn again.

    Args:
        groups: the clips of each group.
        draws: how often each group is drawn in a pass.
        seed: the seed of the order.
    """

    def __init__(self, groups: Sequence[Sequence[Record]], draws: Sequence[int], seed: int):
        # The draws of a pass are numbered, those of a group adjacent, and shuffled.
        super().__init__(grain.MapDataset.range(sum(draws)).seed(seed).shuffle().repeat())
        self._draws, self._pass = draws, sum(draws)
        self._first = [0, *itertools.accumulate(draws[:-1])]
        seeds = np.random.SeedSequence(seed).generate_state(len(groups)).tolist()
        self._groups = [
            grain.MapDataset.source(clips).shuffle(seed=own_seed).repeat()
            for clips, own_seed in zip(groups, seeds, strict=True)
        ]

    def __len__(self):
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        draw = self._parent[index]
        group = bisect.bisect_right(self._first, draw) - 1
        before = index // self._pass * self._draws[group]
        return self._groups[group][before + draw - self._first[group]]
