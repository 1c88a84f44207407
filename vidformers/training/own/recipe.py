"""The recipe of a run on own videos: how many clips a model must see, learning rate, warm-up and evaluations."""

import math
from collections.abc import Set
from typing import Any

from vidformers.training.own.budget import Length

# Clips that a model must see. With random parameters, the smallest needs some 6,000 on the set of tests/own_videos.py.
_CLIPS, _EPOCHS = 12_800, 30
_CLIPS_WITH_WEIGHTS, _EPOCHS_WITH_WEIGHTS = 1_600, 10
_LR, _LR_WITH_WEIGHTS = 1e-3, 1e-4  # for batches of 16 clips; the first one for models up to 128 wide
_WIDE = 768  # of a model whose size is a name

# Fields of which the command line gives at most one.
TOTAL = frozenset({"train.total_steps", "train.total_epochs"})
_EVERY = frozenset({"train.eval_every_steps", "train.eval_every_epochs"})
_WARMUP = frozenset({"optim.warmup_steps", "optim.warmup_epochs"})


def clips_needed(width: int | None, videos: int, has_weights: bool) -> int:
    """Returns how many clips a model must see to learn.

    Args:
        width: of the model; None if it has a named size.
        videos: training videos.
        has_weights: whether the model starts from published weights.
    """
    if has_weights:
        return max(_CLIPS_WITH_WEIGHTS, _EPOCHS_WITH_WEIGHTS * videos)
    # Wide models learn at a lower rate, and so need more clips.
    return round(max(_CLIPS * max((width or _WIDE) / 192, 1.0) ** 0.5, _EPOCHS * videos))


def schedule(planned: Length, batch: int, width: int | None, has_weights: bool, given: Set[str]) -> dict[str, Any]:
    """Returns the fields of the schedule, by their full names, without those that are given.

    Args:
        planned: the length of the run.
        batch: clips of a step.
        width, has_weights: see `clips_needed`.
        given: the names of the given fields.
    """
    # The rate falls with the width, as the updates of wider layers add up, and grows with the root of the batch.
    lr = _LR_WITH_WEIGHTS if has_weights else _LR * min(1.0, 128 / (width or _WIDE))
    every = math.ceil(planned.steps / planned.evaluations)
    fields: dict[str, Any] = {
        "optim.lr": float(f"{lr * (batch / 16) ** 0.5:.2g}"),
        "train.log_every_steps": max(1, min(50, planned.steps // 20)),
        "checkpoint.every_steps": every,
    }
    for names, (steps, value) in (
        (TOTAL, ("train.total_steps", planned.steps)),
        (_EVERY, ("train.eval_every_steps", every)),
        (_WARMUP, ("optim.warmup_steps", planned.steps // 10)),
    ):
        if not names & given:
            fields |= dict.fromkeys(names) | {steps: value}
    return {name: value for name, value in fields.items() if name not in given}
