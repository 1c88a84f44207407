"""Tiny classifiers, one a registered attention scheme, for tests that loop over the registry; and further schemes."""

from dataclasses import dataclass
from functools import partial

from vidformers.attention.frame import Frame
from vidformers.attention.registry import SchemeEntry, load_schemes
from vidformers.attention.scheme import Scheme, with_neighbours
from vidformers.attention.time import Time
from vidformers.models.config import ModelConfig

SCHEMES = load_schemes()
PATCH = 4  # pixels a side


@dataclass(frozen=True)
class Past(Time):
    """Patch (p, t) attends to patch p of the frames up to t: a causal scheme, whose groups need a mask."""

    whole = False
    causal = True

    def visible(self, query, key):
        return super().visible(query, key) & (key.t <= query.t)


@dataclass(frozen=True)
class Near(Frame):
    """Patch (y, x, t) attends to the patches at most 1 away on each axis: keys of other groups, and a mask."""

    whole = False
    reads_neighbours = True

    def neighbourhood(self, groups, grid):
        return with_neighbours(groups, (-1, 0, 1))

    def visible(self, query, key):
        return (abs(query.t - key.t) <= 1) & (abs(query.y - key.y) <= 1) & (abs(query.x - key.x) <= 1)


def _near_keys(grid, *place):
    """Returns the expected keys of a patch: 3 x 3 x 3 patches around it, cut off at the ends of the grid."""
    frames, rows, columns = (range(max(0, i - 1), min(n, i + 2)) for i, n in zip(place, grid, strict=True))
    return [(s, row, column) for s in frames for row in rows for column in columns]


# Schemes that the package does not have: one has a mask, the other one also reads other groups.
EXAMPLES = [
    SchemeEntry("past", Past, (4, 2, 2), lambda grid, t, y, x: [(s, y, x) for s in range(t + 1)], ("none",)),
    SchemeEntry("near", Near, (4, 3, 3), _near_keys, ("clip",)),
]


def required_options(scheme: Scheme) -> dict:
    """Returns the options of `SelfAttention` without which it refuses the scheme."""
    return dict(class_keys=False, class_queries=False) if scheme.causal else {}


def is_per_frame(entry: SchemeEntry) -> bool:
    """Returns whether the scheme needs a class token for each frame."""
    return "frame" in entry.class_tokens and "clip" not in entry.class_tokens


def scheme_model(entry: SchemeEntry, *, temporal_init=None, attention=None, **options):
    """Returns make_model(rngs=...) of a classifier with 5 classes, whose only attention is the scheme of `entry`.

    Its grid of patches is `entry.grid`. There is one class token a clip, or one a frame where the scheme needs that. A
    causal scheme refuses class tokens as keys, so a last block of class attention reads the patches. The model has 4
    heads, since `entry.expected_keys` are those of at least 3.

    Args:
        temporal_init: initialiser of the table of frames, or None for no table.
        attention: options of `SelfAttention`.
        **options: fields of `ModelConfig`.
    """
    frames, rows, columns = entry.grid
    assert rows == columns, f"{entry.name}: the grid {entry.grid} is not square."
    tiny = dict(num_classes=5, width=16, heads=4, depth=2, patch_size=PATCH, frames=frames, image_size=PATCH * rows)
    config = ModelConfig(**tiny | options)
    scheme = entry.make()
    options = required_options(scheme) | (attention or {})
    stages = [config.stage(config.depth, config.attention(scheme, **options), config.mlp())]
    if scheme.causal:
        stages.append(config.stage(1, config.class_attention(), config.mlp(updates_patches=False), late_class=True))
    return partial(config.classifier, *stages, temporal_init=temporal_init, class_per_frame=is_per_frame(entry))
