"""Encoders whose stages see the clip ever coarser: what Swin and CvT share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.errors import require
from vidformers.layers.embedding import normalise, position_init
from vidformers.layers.tokens import Noise, Tokens, dropout
from vidformers.models.encoder import Classifier, Stage, StageSpec, stage_noises

NORM_EPSILON = 1e-5  # of the norms of Swin and CvT


class Pyramid(nnx.Module):
    """Stages, each behind an embedding of its own: video (b t y x 3) -> class tokens (b c d), normalised.

    Args:
        embeddings: one a stage; the first makes patches (b t y x d) of pixels, the others of patches.
        stages: a `StageSpec` each.
        width: d of the last stage.
        shape: of one clip, (t, y, x, 3).
        num_class_tokens: how many join before the last stage; with 0 the mean of the normalised patches stands for one.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        embeddings: Sequence[nnx.Module],
        stages: Sequence[StageSpec],
        *,
        width: int,
        shape: tuple[int, int, int, int],
        mean,
        std,
        num_class_tokens: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        unroll: int = 1,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape, self.mean, self.std, self.dtype = shape, tuple(mean), tuple(std), dtype
        self.dropout, self.drop_path, self.num_class_tokens = dropout, drop_path, num_class_tokens
        self.embeddings = nnx.List(embeddings)
        self.stages = nnx.List(Stage(spec, remat=remat, unroll=unroll, rngs=rngs) for spec in stages)
        self.class_token = nnx.Param(position_init(rngs.params(), (width,))) if num_class_tokens else nnx.data(None)
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, video, key=None):
        patches, first = normalise(video, self.mean, self.std, self.dtype), None
        noises = [None] * len(self.stages)
        if key is not None:
            key, *keys = jax.random.split(key, 1 + len(self.stages))
            first, noises = Noise(key, jnp.zeros(())), stage_noises(self.stages, self.drop_path, keys)
        for i, (embedding, stage, noise) in enumerate(zip(self.embeddings, self.stages, noises, strict=True)):
            patches = embedding(patches)
            if i == 0:
                patches = dropout(patches, self.dropout, first)
            patches, classes = stage(Tokens(patches, self.initial_class_tokens(i, patches)), noise)
        if self.num_class_tokens:
            return self.norm(classes)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return self.norm(patches).mean(axis=(1, 2, 3), dtype=wide)[:, None]

    def initial_class_tokens(self, stage: int, patches):
        """(b c d): the class tokens that the stage starts with."""
        b, d = patches.shape[0], patches.shape[-1]
        if not self.num_class_tokens or stage < len(self.stages) - 1:
            return jnp.zeros((b, 0, d), patches.dtype)
        return jnp.broadcast_to(self.class_token[...].astype(patches.dtype), (b, self.num_class_tokens, d))


def pyramid(parts, embeddings, stages, *, width: int, rngs: nnx.Rngs, **options) -> Classifier:
    """The classifier of these embeddings and stages, the rest as `parts` (`models.Parts`) say."""
    shape = (parts.frames, parts.image_size, parts.image_size, 3)
    encoder = Pyramid(
        embeddings,
        stages,
        width=width,
        shape=shape,
        mean=parts.mean,
        std=parts.std,
        drop_path=parts.drop_path,
        remat=parts.remat,
        unroll=parts.unroll,
        rngs=rngs,
        **options,
        **parts.compute,
    )
    return Classifier(encoder, width=width, num_classes=parts.num_classes, rngs=rngs)


def check_depth(parts, depths) -> None:
    """The depth that models of several stages share with the others is that of all stages, so that none is unread."""
    require(parts.depth == sum(depths), f"model.depth={parts.depth} must be the sum of model.depths={tuple(depths)}.")
