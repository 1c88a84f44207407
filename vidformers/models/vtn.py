"""VTN: a backbone for each frame, then Longformer layers over the features of the frames.

Paper: Neimark et al., "Video Transformer Network", 2021. The model behaves as its authors' code.

    backbone, frame by frame: ViT or ResNet     (b t y x 3) -> (b t d)
    class token, positions, token types, norm
    temporal_depth x [ window attention over frames -> MLP ]     post-norm, as in Longformer and BERT
    head norm -> linear -> GELU of the class token -> linear head

The clip may have any number of frames. The position of a frame is its index in the video.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import jax
import jax.numpy as jnp
from flax import nnx

from input_pipeline.fields import shown
from vidformers.attention.dictionary import Dictionary
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.errors import require, require_range
from vidformers.layers.embedding import unit_norm_init
from vidformers.layers.linear import Linear, glorot, square_init
from vidformers.layers.mlp import gelu
from vidformers.layers.tokens import LayerRng, dropout
from vidformers.models.config import MAX_DEPTH, ModelConfig
from vidformers.models.encoder import Block, Classifier, Encoder, FramewiseEncoder, Stage, StageSpec
from vidformers.models.resnet import ResNet, check_resnet
from vidformers.models.vit import vit

# Rows of the position embedding. A frame with index i has row i modulo 286.
CLASS_POSITION, PADDING_POSITION = 286, 287


class PostNormMlp(nnx.Module):
    """LN(tokens + W_2 GELU(W_1 tokens)) (Longformer, as BERT)."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, dtype=jnp.float32, rngs: nnx.Rngs):
        self.dropout = dropout
        self.wide = Linear(width, hidden, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden, width, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

    def __call__(self, series: FrameSequence, rng: LayerRng | None = None) -> FrameSequence:
        branch = dropout(self.out(gelu(self.wide(series.tokens))), self.dropout, rng)
        return series._replace(tokens=self.norm(series.tokens + branch))


class TemporalEncoder(nnx.Module):
    """The readout of VTN (sec. 3.2, 3.3): frame features (b t d) -> (b d).

    A class token is prepended to the frames. Positions and token types are added, and the Longformer layers follow.
    The class token then passes LN, a linear map d -> d and GELU: the paper's two-layer MLP head without its last linear
    map.

    Args:
        width, heads: d and h of the layers; h divides d.
        depth: the number of layers.
        window: the window of `LongformerAttention`, one number for all layers or one per layer (in VTN 18).
        mlp_ratio: hidden width of the MLP divided by d.
        tie_global, backend, masked: those of `LongformerAttention`.
        make_dictionary: make_dictionary(rngs) returns the dictionary of one layer, or None.
        dropout: dropout rate of the embedded tokens, the attention weights and every branch.
        head_dropout: dropout rate of the input of the linear head.
        remat, unroll: those of `Stage`. Consecutive layers with equal windows are one stage.
    Raises:
        ConfigError: the number of windows is not the number of layers, or a window is odd or below 4; there is no
            layer; the heads do not divide the width; or a rate is out of range. When called: features, positions or
            mask have a wrong shape.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        depth: int = 3,
        window: Sequence[int] = (18,),
        mlp_ratio: int = 4,
        tie_global: bool = False,
        make_dictionary: Callable[[nnx.Rngs], Dictionary | None] = lambda rngs: None,
        dropout: float = 0.1,
        head_dropout: float = 0.5,
        remat: str = "none",
        unroll: int | str = "auto",
        backend: str = "auto",
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        require_range("model.temporal_depth", depth, 1, MAX_DEPTH)
        windows = tuple(window) * (depth if len(window) == 1 else 1)
        require(
            len(windows) == depth,
            f"model.window={shown(windows)} must be one number, or one for each of the "
            f"model.temporal_depth={depth} layers.",
        )
        for name, rate in (("temporal_dropout", dropout), ("head_dropout", head_dropout)):
            require(0.0 <= rate < 1.0, f"model.{name}={rate} must be at least 0 and below 1.")
        self.width, self.dropout, self.head_dropout = width, dropout, head_dropout
        self.class_token = nnx.Param(unit_norm_init(rngs.params(), (width,)))
        # Deviation 1, because the last norm of the backbone scales the features to 1. With smaller positions the model
        # hardly learns the order of frames.
        self.position = nnx.Param(jax.random.normal(rngs.params(), (PADDING_POSITION + 1, width)))
        self.token_type = nnx.Param(
            unit_norm_init(rngs.params(), (2, width))
        )  # row 0 for frames, row 1 for the class token
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

        def layer(window: int, rngs: nnx.Rngs) -> Block:
            attention = LongformerAttention(
                width,
                heads,
                window,
                tie_global=tie_global,
                dictionary=make_dictionary(rngs),
                backend=backend,
                masked=masked,
                dropout=dropout,
                dtype=dtype,
                rngs=rngs,
            )
            mlp = PostNormMlp(width, mlp_ratio * width, dropout=dropout, dtype=dtype, rngs=rngs)
            return Block([attention, mlp])

        self.stages = nnx.List(
            Stage(StageSpec(partial(layer, size), len(list(run))), remat=remat, unroll=unroll, rngs=rngs)
            for size, run in groupby(windows)
        )
        self.head_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = Linear(width, width, kernel_init=square_init, rngs=rngs)

    def __call__(self, features, key=None, positions=None, mask=None):
        """Returns the input of the head (b d), in float32 or wider.

        Args:
            features: (b t d), of frames.
            key: random key of a training step; None in evaluation.
            positions: (b t), the index of each frame in its video; None is 0, 1, ...
            mask: (b t), False where a frame is padding; None is no padding.
        """
        encode_key, head_key = (None, None) if key is None else jax.random.split(key)
        tokens = self.encode(features, encode_key, positions, mask)
        return dropout(self.class_features(tokens), self.head_dropout, _without_drop_path(head_key))

    def class_features(self, tokens):
        """Returns the input of the linear head (b d), before dropout, from tokens (b 1+t d) after the last layer."""
        x = tokens[:, 0].astype(jnp.promote_types(tokens.dtype, jnp.float32))
        return gelu(self.head(self.head_norm(x)))

    def encode(self, features, key=None, positions=None, mask=None):
        """Returns the class token and the frames (b 1+t d) after the last layer; the arguments are those of a call."""
        count = 1 + len(self.stages)
        embed_key, *keys = [None] * count if key is None else jax.random.split(key, count)
        series = self.embed(features, embed_key, positions, mask)
        for stage, stage_key in zip(self.stages, keys, strict=True):
            series = stage(
                series, None if stage_key is None else _without_drop_path(jax.random.split(stage_key, stage.depth))
            )
        return series.tokens

    def embed(self, features, key=None, positions=None, mask=None) -> FrameSequence:
        """Returns the class token and the frames before the first layer; the arguments are those of a call."""
        b, t, d = features.shape
        positions = jnp.broadcast_to(jnp.arange(t), (b, t)) if positions is None else positions
        mask = jnp.ones((b, t), bool) if mask is None else mask
        require(
            d == self.width and t > 0 and positions.shape == mask.shape == (b, t),
            f"Frame features {features.shape} must be (b t d) with t > 0 and d={self.width}, positions "
            f"{positions.shape} and mask {mask.shape} must be (b t).",
        )
        rows = jnp.where(mask, positions % CLASS_POSITION, PADDING_POSITION)
        frames = features + self.position[rows] + self.token_type[0]
        token = self.class_token + self.position[CLASS_POSITION] + self.token_type[1]
        tokens = jnp.concatenate([jnp.broadcast_to(token, (b, 1, d)), frames], axis=1)
        tokens = dropout(self.norm(tokens), self.dropout, _without_drop_path(key))
        return FrameSequence(tokens, jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True))


def _without_drop_path(keys) -> LayerRng | None:
    """Returns a `LayerRng` with drop_path 0 of one key, or of several stacked keys; None for None."""
    return None if keys is None else LayerRng(keys, jnp.zeros(keys.shape))


def vtn(
    config: ModelConfig,
    *,
    backbone: str = "vit",
    depths: tuple[int, ...] = (3, 4, 6, 3),
    stem: int = 64,
    projection: str = "linear",
    temporal_depth: int = 3,
    window: tuple[int, ...] = (18,),
    tie_global: bool = False,
    temporal_dropout: float = 0.1,
    head_dropout: float = 0.5,
    frames_at_once: int | None = None,
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a VTN.

    The config describes the ViT. Its width and heads are also those of the layers over frames.

    Args:
        backbone: 'vit', whose class token is the feature of a frame, or 'resnet'.
        depths, stem, projection: those of `ResNet`. The paper does not say how the 2,048 features of a ResNet-50 become
            those of the layers over frames. 'linear' maps them to the width, and 'none' gives these layers the width
            2,048. Both are guesses.
        temporal_depth, temporal_dropout: depth and dropout of the `TemporalEncoder`.
        window, tie_global, head_dropout: those of `TemporalEncoder`.
        frames_at_once: frames of each clip that the backbone processes at once in evaluation. Memory grows with this
            number and not with the number of frames. None is all frames.
    Raises:
        ConfigError: an unknown backbone, or a value that `TemporalEncoder` or `ResNet` refuses.
    """
    require(backbone in ("vit", "resnet"), f"model.backbone={backbone!r} must be vit or resnet.")
    require(
        config.kernel == "softmax",
        f"model.kernel={config.kernel} does not go with VTN's window attention. Use softmax.",
    )
    check_resnet(depths, stem, projection)  # a ViT ignores them
    if backbone == "vit":
        encoder: Encoder | ResNet = vit(replace(config, frames=1), rngs=rngs).encoder
    else:
        encoder = _resnet(config, depths, stem, projection, rngs)
    readout = TemporalEncoder(
        config.width,
        config.heads,
        depth=temporal_depth,
        window=window,
        mlp_ratio=config.mlp_ratio,
        tie_global=tie_global,
        make_dictionary=config.make_dictionary,
        dropout=temporal_dropout,
        head_dropout=head_dropout,
        remat=config.remat,
        unroll=config.unroll,
        backend=config.backend,
        dtype=config.sublayer_options["dtype"],
        masked=config.masked,
        rngs=rngs,
    )
    framewise = FramewiseEncoder(encoder, config.frames, frames_at_once)
    return Classifier(framewise, readout, width=config.width, num_classes=config.num_classes, rngs=rngs)


def _resnet(config: ModelConfig, depths: Sequence[int], stem: int, projection: str, rngs: nnx.Rngs) -> ResNet:
    return ResNet(
        frames=1,
        image_size=config.image_size,
        width=config.width,
        mean=config.mean,
        std=config.std,
        depths=depths,
        stem=stem,
        projection=projection,
        dtype=config.sublayer_options["dtype"],
        rngs=rngs,
    )
