"""CvT on clips: convolutions before and inside attention, in three stages on ever coarser grids.

Papers: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", 2021.
Li et al., "HaViT", 2022, Table 7, adds the dictionary but does not say how CvT is extended to video.

    depths[0] x [ convolutional attention -> MLP ]     after a 7 x 7 convolution with stride 4
    depths[1] x [ convolutional attention -> MLP ]     after a 3 x 3 convolution with stride 2
    depths[2] x [ convolutional attention -> MLP ]     after a 3 x 3 convolution with stride 2, with class tokens

Only the last stage has class tokens. CvT has no spatial position embedding, because convolutions encode the position of
a patch in its frame. A temporal position embedding is added at the start of the first stage with joint attention, since
only joint attention uses the time of a patch.
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.scheme import Scheme
from vidformers.errors import require
from vidformers.layers.convolution import Conv
from vidformers.layers.embedding import unit_norm_init
from vidformers.layers.mlp import gelu as exact_gelu
from vidformers.layers.mlp import gelu_quick
from vidformers.layers.tokens import LayerRng, Tokens
from vidformers.models.config import ModelConfig, ModelTraits
from vidformers.models.encoder import Block, Classifier, StageSpec
from vidformers.models.pyramid import NORM_EPSILON, check_depth, pyramid

CVT = ModelTraits(defaults=dict(size="CvT-13", patch_size=4), frames_on_one_device=True)
GELUS = {"exact": exact_gelu, "quick": gelu_quick}
WIDTHS, HEADS = (1, 3, 6), (1, 3, 6)  # of each stage, relative to the first
STEMS = (
    dict(kernel=7, stride=4, padding=2),
    dict(kernel=3, stride=2, padding=1),
    dict(kernel=3, stride=2, padding=1),
)


class ConvolutionalBlock(Block):
    """A block that orders tokens by place if its attention does (`Tokens.by_place`)."""

    def __call__(self, tokens: Tokens, rng: LayerRng | None = None) -> Tokens:  # type: ignore[override]
        if not getattr(self.sublayers[0], "time_last", False):
            return super().__call__(tokens, rng)
        return super().__call__(tokens.by_place(), rng).by_frame()


class ConvolutionalEmbedding(nnx.Module):
    """LN conv x of every frame: (b t y x c) -> (b t y/s x/s d).

    Args:
        channels: c.
        width: d.
        kernel, stride, padding: of the convolution, in pixels or patches.
        frames: if given, a learned temporal position embedding (frames, d) is added.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        kernel: int,
        stride: int,
        padding: int,
        frames: int | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.convolution = Conv(
            channels, width, (kernel, kernel), strides=stride, padding=padding, dtype=dtype, rngs=rngs
        )
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.time = nnx.data(None) if frames is None else nnx.Param(unit_norm_init(rngs.params(), (frames, width)))

    def __call__(self, patches):
        patches = self.norm(self.convolution(patches))
        return patches if self.time is None else patches + self.time[:, None, None].astype(patches.dtype)


def cvt(
    config: ModelConfig,
    *,
    depths: tuple[int, int, int] = (1, 2, 10),
    joint: str = "last",
    scale: str = "width",
    gelu: str = "exact",
    rngs: nnx.Rngs,
) -> Classifier:
    """Returns a CvT.

    The width and heads of the config are those of the first stage (CvT-13: 64 and 1). The second stage has 3 times and
    the third stage 6 times as many. A dictionary has the width of its stage.

    Args:
        depths: blocks of each stage. Their sum is `config.depth`.
        joint: the stages that attend over all frames, 'none', 'last' or 'all'. With 'none', each frame has a class
            token, the head takes their mean, and the model is blind to the order of frames. Otherwise the clip has one
            class token.
        gelu: 'exact', or 'quick', the QuickGELU of the authors' code. Hugging Face's port has the exact one.
        scale: scale of the attention scores, 'width' for 1/sqrt(d) as in the public CvT, or 'heads' for 1/sqrt(d/h).
    Raises:
        ConfigError: a patch size other than 4, a clip smaller than a patch, an unknown choice, or the cosine kernel.
    """
    require(joint in ("none", "last", "all"), f"model.joint={joint!r} must be none, last or all.")
    require(len(depths) == 3 and min(depths) >= 1, f"model.depths={tuple(depths)} must be three numbers of at least 1.")
    require(gelu in GELUS, f"model.gelu={gelu!r} must be one of {', '.join(GELUS)}.")
    check_depth(config, depths)
    require(config.patch_size == 4, f"model.patch_size={config.patch_size} must be 4, the stride of CvT's first stage.")
    require(config.image_size >= 4, f"model.image_size={config.image_size} must be at least 4.")
    first_joint = {"none": 3, "last": 2, "all": 0}[joint]
    levels = [
        replace(config, width=config.width * w, heads=config.heads * h) for w, h in zip(WIDTHS, HEADS, strict=True)
    ]
    widths = [level.width for level in levels]
    embeddings, stages = [], []
    for i, level in enumerate(levels):
        frames = config.frames if i == first_joint else None
        embeddings.append(
            ConvolutionalEmbedding(
                [3, *widths][i], widths[i], **STEMS[i], frames=frames, dtype=config.sublayer_options["dtype"], rngs=rngs
            )
        )
        attention = _attention(level, Joint() if i >= first_joint else Frame(), scale)
        stages.append(_stage(depths[i], attention, level.mlp(norm_epsilon=NORM_EPSILON, activation=GELUS[gelu])))
    num_class_tokens = config.frames if joint == "none" else 1
    return pyramid(config, embeddings, stages, width=widths[-1], num_class_tokens=num_class_tokens, rngs=rngs)


def _stage(depth: int, attention, mlp) -> StageSpec:
    return StageSpec(lambda rngs: ConvolutionalBlock([attention(rngs=rngs), mlp(rngs=rngs)]), depth)


def _attention(level: ModelConfig, scheme: Scheme, scale: str) -> Callable[..., ConvolutionalAttention]:
    def make(rngs: nnx.Rngs) -> ConvolutionalAttention:
        return ConvolutionalAttention(
            scheme,
            level.width,
            level.heads,
            scale=scale,
            dictionary=level.make_dictionary(rngs),
            kernel=level.kernel,
            backend=level.backend,
            masked=level.masked,
            rngs=rngs,
            **level.sublayer_options,
        )

    return make
