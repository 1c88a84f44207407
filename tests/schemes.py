"""Tiny classifiers, one a registered attention scheme, for tests that loop over the registry."""

from vidformers.attention.registry import SchemeEntry, load_schemes
from vidformers.models.config import ModelConfig

SCHEMES = load_schemes()
PATCH = 4  # pixels a side


def scheme_model(entry: SchemeEntry, *, temporal_init=None, attention=None, **options):
    """Returns make_model(rngs=...) of a classifier with 5 classes, whose only attention is the scheme of `entry`.

    Its grid of patches is `entry.grid`. There is one class token a clip, or one a frame where the scheme needs that.
    It has 4 heads, since `entry.expected_keys` are those of at least 3.

    Args:
        temporal_init: initialiser of the table of frames, or None for no table.
        attention: options of `SelfAttention`.
        **options: fields of `ModelConfig`.
    """
    frames, rows, columns = entry.grid
    assert rows == columns, f"{entry.name}: the grid {entry.grid} is not square."
    tiny = dict(num_classes=5, width=16, heads=4, depth=2, patch_size=PATCH, frames=frames, image_size=PATCH * rows)
    config = ModelConfig(**tiny | options)
    stage = config.stage(config.depth, config.attention(entry.make(), **attention or {}), config.mlp())

    def make_model(*, rngs):
        return config.classifier(
            stage, temporal_init=temporal_init, class_per_frame="clip" not in entry.class_tokens, rngs=rngs
        )

    return make_model
