"""VTN's temporal encoder: Longformer layers over the features of frames, read by one class token."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.attention.dictionary import Dictionary
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.errors import require
from vidformers.layers.embedding import position_init
from vidformers.layers.linear import Linear, glorot, square_init
from vidformers.layers.mlp import gelu
from vidformers.layers.tokens import Noise, dropout
from vidformers.models.config import ModelConfig
from vidformers.models.encoder import Block, Classifier, FramewiseEncoder, Stage, StageSpec
from vidformers.models.resnet import ResNet
from vidformers.models.vit import vit

CLASS_POSITION, PADDING_POSITION = 286, 287  # the rows above belong to frames, by index modulo 286


class PostNormMlp(nnx.Module):
    """LN(tokens + W_2 GELU(W_1 tokens)) (Longformer, as BERT)."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, dtype=jnp.float32, rngs: nnx.Rngs):
        self.dropout = dropout
        self.wide = Linear(width, hidden, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden, width, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

    def __call__(self, series: FrameSequence, noise: Noise | None = None) -> FrameSequence:
        branch = dropout(self.out(gelu(self.wide(series.tokens))), self.dropout, noise)
        return series._replace(tokens=self.norm(series.tokens + branch))


class TemporalEncoder(nnx.Module):
    """Features of frames (b t d) -> what a linear head reads (b d): the readout of VTN (sec. 3.2, 3.3).

    A class token joins the frames; positions and token types are added; Longformer layers follow; the class token
    passes LN, a linear map d -> d and GELU, all of the two-layer MLP head but its last linear map.

    Args:
        width, heads: d and h of the layers; h divides d.
        depth: the number of layers.
        window: what `WindowAttention` takes, a sequence of one for all layers or one each (in VTN 18).
        mlp_ratio: width of the MLP over d.
        tie_global, masked: those of `WindowAttention`.
        make_dictionary: called with rngs for the dictionary of each layer; may return None.
        dropout: of the embedded tokens and of every branch.
        head_dropout: of what the linear head reads.
        remat, unroll: those of `Stage`. Layers that follow each other with equal windows are one stage.
    Raises:
        ConfigError: windows that are not one a layer, odd or below 4; no layer; heads that do not divide the width; a
            rate out of range. When called: features, positions or a mask of the wrong shape.
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
        unroll: int = 1,
        dtype=jnp.float32,
        masked: bool = False,
        rngs: nnx.Rngs,
    ):
        require(depth >= 1, f"model.temporal_depth={depth} must be at least 1.")
        windows = tuple(window) * (depth if len(window) == 1 else 1)
        require(
            len(windows) == depth,
            f"model.window={windows} must be one number, or one for each of model.temporal_depth={depth} layers.",
        )
        for name, rate in (("temporal_dropout", dropout), ("head_dropout", head_dropout)):
            require(0.0 <= rate < 1.0, f"model.{name}={rate} must be at least 0 and below 1.")
        self.width, self.dropout, self.head_dropout = width, dropout, head_dropout
        self.class_token = nnx.Param(position_init(rngs.params(), (width,)))
        # As strong as the features, whose norm has just scaled them to 1: weaker, and order is hardly learnt.
        self.position = nnx.Param(jax.random.normal(rngs.params(), (PADDING_POSITION + 1, width)))
        self.token_type = nnx.Param(position_init(rngs.params(), (2, width)))  # of frames, of the class token
        self.norm = nnx.LayerNorm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)
        common = dict(dropout=dropout, dtype=dtype)

        def layer(window):
            return lambda rngs: Block(
                [
                    LongformerAttention(
                        width,
                        heads,
                        window,
                        tie_global=tie_global,
                        dictionary=make_dictionary(rngs),
                        masked=masked,
                        rngs=rngs,
                        **common,
                    ),
                    PostNormMlp(width, mlp_ratio * width, rngs=rngs, **common),
                ]
            )

        self.stages = nnx.List(
            Stage(StageSpec(layer(window), len(list(run))), remat=remat, unroll=unroll, rngs=rngs)
            for window, run in groupby(windows)
        )
        self.head_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = Linear(width, width, kernel_init=square_init, rngs=rngs)

    def __call__(self, features, key=None, positions=None, mask=None):
        """Features (b t d) -> (b d), in float32 or wider.

        `positions` (b t) are the indices of the frames in their video, by default 0, 1, ...; `mask` (b t) is False
        where a frame is padding. A key makes it a training pass.
        """
        first, second = (None, None) if key is None else jax.random.split(key)
        return dropout(self.attend(self.encode(features, first, positions, mask)), self.head_dropout, _noise(second))

    def attend(self, tokens):
        """Tokens (b 1+t d) after the last layer -> (b d), from the class token."""
        x = tokens[:, 0].astype(jnp.promote_types(tokens.dtype, jnp.float32))
        return gelu(self.head(self.head_norm(x)))

    def encode(self, features, key=None, positions=None, mask=None):
        """Features (b t d) -> tokens (b 1+t d) of class token and frames after the last layer."""
        first, *keys = [None] * (1 + len(self.stages)) if key is None else jax.random.split(key, 1 + len(self.stages))
        series = self.embed(features, first, positions, mask)
        for stage, each in zip(self.stages, keys, strict=True):
            series = stage(series, None if each is None else _noise(jax.random.split(each, stage.depth)))
        return series.tokens

    def embed(self, features, key=None, positions=None, mask=None) -> FrameSequence:
        """Features (b t d) -> class token and frames before the first layer."""
        b, t, d = features.shape
        positions = jnp.broadcast_to(jnp.arange(t), (b, t)) if positions is None else positions
        mask = jnp.ones((b, t), bool) if mask is None else mask
        require(
            d == self.width and t > 0 and positions.shape == mask.shape == (b, t),
            f"Frame features {features.shape} must be (b t d) with t > 0 and d={self.width}, positions "
            f"{positions.shape} and mask {mask.shape} (b t).",
        )
        rows = jnp.where(mask, positions % CLASS_POSITION, PADDING_POSITION)
        frames = features + self.position[rows] + self.token_type[0]
        token = self.class_token + self.position[CLASS_POSITION] + self.token_type[1]
        tokens = jnp.concatenate([jnp.broadcast_to(token, (b, 1, d)), frames], axis=1)
        tokens = dropout(self.norm(tokens), self.dropout, _noise(key))
        return FrameSequence(tokens, jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True))


def _noise(keys) -> Noise | None:
    """Noise without stochastic depth, of one key or of several stacked."""
    return None if keys is None else Noise(keys, jnp.zeros(keys.shape))


def vtn(
    parts: ModelConfig,
    *,
    backbone: str = "vit",
    depths: tuple[int, ...] = (3, 4, 6, 3),
    stem: int = 64,
    temporal_depth: int = 3,
    window: tuple[int, ...] = (18,),
    tie_global: bool = False,
    temporal_dropout: float = 0.1,
    head_dropout: float = 0.5,
    frames_at_once: int | None = None,
    rngs,
) -> Classifier:
    """VTN: a backbone frame by frame, then a Longformer over the features of frames, any number of them.

    `Parts.size`, `width`, `heads` and `depth` are those of the ViT, and `width` and `heads` of the layers over time.

    Args:
        backbone: 'vit', its class token, or 'resnet' (see `ResNet`, which `depths` and `stem` are of).
        temporal_depth, window, tie_global, temporal_dropout, head_dropout: see `TemporalEncoder`.
        frames_at_once: frames of a clip that the backbone takes in one go in evaluation; memory grows with this.
    Raises:
        ConfigError: an unknown backbone, or what `TemporalEncoder` and `ResNet` refuse.
    """
    require(backbone in ("vit", "resnet"), f"model.backbone={backbone!r} must be vit or resnet.")
    require(parts.kernel == "softmax", f"model.kernel={parts.kernel} is not one that VTN's window attention has.")
    if backbone != "vit":
        parts.require_einsum_backend("VTN's window attention")
    if backbone == "vit":
        encoder = vit(replace(parts, frames=1), rngs=rngs).encoder
    else:
        encoder = ResNet(
            frames=1,
            image_size=parts.image_size,
            width=parts.width,
            mean=parts.mean,
            std=parts.std,
            depths=depths,
            stem=stem,
            dtype=parts.compute["dtype"],
            rngs=rngs,
        )
    readout = TemporalEncoder(
        parts.width,
        parts.heads,
        depth=temporal_depth,
        window=window,
        mlp_ratio=parts.mlp_ratio,
        tie_global=tie_global,
        make_dictionary=parts.make_dictionary,
        dropout=temporal_dropout,
        head_dropout=head_dropout,
        remat=parts.remat,
        unroll=parts.unroll,
        dtype=parts.compute["dtype"],
        masked=parts.masked,
        rngs=rngs,
    )
    return Classifier(
        FramewiseEncoder(encoder, parts.frames, frames_at_once),
        readout,
        width=parts.width,
        num_classes=parts.num_classes,
        rngs=rngs,
    )
