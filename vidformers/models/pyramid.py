"""Encoders whose stages have ever coarser grids; shared by Swin and CvT.

    embedding -> stage -> embedding -> stage -> ... -> norm

Each embedding makes the patches of its stage from the pixels or from the patches of the stage before.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.errors import require
from vidformers.layers.embedding import normalise, unit_norm_init
from vidformers.layers.tokens import LayerRng, Tokens, dropout, tokens_of_maps
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Classifier, Stage, StageSpec, stage_rngs

NORM_EPSILON = 1e-5  # of all layer norms of Swin and CvT


class Pyramid(nnx.Module):
    """Stages, each after an embedding: video (b t y x 3) -> class tokens (b c d), after the final norm.

    Args:
        embeddings: one per stage; the first takes pixels, the others take maps of patches, and all return maps
            (b t y x d).
        stages: one spec per stage.
        width: d of the last stage.
        shape: the shape of one clip, (t, y, x, 3).
        mean, std: normalisation of the colour channels.
        num_class_tokens: class tokens that are appended at the last stage. With 0, the encoder returns the mean of the
            normalised patches as one class token.
        dropout: dropout rate of the patches of the first embedding.
        drop_path: stochastic depth of the last block. It grows linearly from 0 at the first block.
        arrange: tokens -> tokens, the order of patches in a stage.
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
        arrange: Callable[[Tokens], Tokens] = lambda tokens: tokens,
        remat: str = "none",
        unroll: int | str = "auto",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape, self.mean, self.std, self.dtype = shape, tuple(mean), tuple(std), dtype
        self.dropout, self.drop_path, self.num_class_tokens = dropout, drop_path, num_class_tokens
        self.arrange = arrange
        self.embeddings = nnx.List(embeddings)
        self.stages = nnx.List(Stage(spec, remat=remat, unroll=unroll, rngs=rngs) for spec in stages)
        self.class_token = nnx.Param(unit_norm_init(rngs.params(), (width,))) if num_class_tokens else nnx.data(None)
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, video, key=None):
        maps, input_rng = normalise(video, self.mean, self.std, self.dtype), None
        rng_per_stage: Iterable[LayerRng | None] = [None] * len(self.stages)
        if key is not None:
            input_key, *stage_keys = jax.random.split(key, 1 + len(self.stages))
            input_rng = LayerRng(input_key, jnp.zeros(()))  # no stochastic depth at the input
            rng_per_stage = stage_rngs(self.stages, self.drop_path, stage_keys)
        for i, (embedding, stage, rng) in enumerate(zip(self.embeddings, self.stages, rng_per_stage, strict=True)):
            maps = embedding(maps)
            if i == 0:
                maps = dropout(maps, self.dropout, input_rng)
            tokens = stage(self.arrange(tokens_of_maps(maps, self.initial_class_tokens(i, maps))), rng)
            maps = tokens.maps
        if self.num_class_tokens:
            return self.norm(tokens.class_tokens)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return self.norm(tokens.patches).mean(axis=(1, 2), dtype=wide)[:, None]

    def initial_class_tokens(self, stage: int, patches):
        """Returns the class tokens (b c d) with which the stage of that index starts; c is 0 before the last stage."""
        b, d = patches.shape[0], patches.shape[-1]
        if self.class_token is None or stage < len(self.stages) - 1:
            return jnp.zeros((b, 0, d), patches.dtype)
        return jnp.broadcast_to(self.class_token[...].astype(patches.dtype), (b, self.num_class_tokens, d))


def pyramid(config: ModelConfig, embeddings, stages, *, width: int, rngs: nnx.Rngs, **options) -> Classifier:
    """Returns the classifier of a `Pyramid` with the fields of the config, and further `options` of the pyramid."""
    encoder = Pyramid(
        embeddings,
        stages,
        width=width,
        shape=(config.frames, config.image_size, config.image_size, 3),
        mean=config.mean,
        std=config.std,
        drop_path=config.drop_path,
        remat=config.remat,
        unroll=config.unroll,
        rngs=rngs,
        **options,
        **config.sublayer_options,
    )
    return Classifier(encoder, width=width, num_classes=config.num_classes, rngs=rngs)


def check_depth(config: ModelConfig, depths: Sequence[int]) -> None:
    """Raises ConfigError unless `config.depth` is the sum of `depths`: otherwise the model would not use the field."""
    require(len(depths) <= 8, f"model.depths has {len(depths)} stages, of which there may be 8.")
    require(
        config.depth == sum(depths),
        f"model.depth={config.depth} must be the sum of model.depths={tuple(depths)}. Set model.depth={sum(depths)}.",
    )
