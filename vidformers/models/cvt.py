"""CvT on clips: convolutions before and inside attention, in three stages of falling resolution."""

from dataclasses import replace

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.errors import require
from vidformers.layers.convolution import Conv
from vidformers.layers.embedding import position_init
from vidformers.models.encoder import Classifier
from vidformers.models.pyramid import NORM_EPSILON, check_depth, pyramid

WIDTHS, HEADS = (1, 3, 6), (1, 3, 6)  # of the stages, in those of the first


class ConvolutionalEmbedding(nnx.Module):
    """LN conv x, of every frame: (b t y x c) -> (b t y/s x/s d), plus a table of frames (t d) if `frames` are given.

    Args:
        kernel, stride, padding: in pixels or patches.
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
        self.time = nnx.data(None) if frames is None else nnx.Param(position_init(rngs.params(), (frames, width)))

    def __call__(self, patches):
        patches = self.norm(self.convolution(patches))
        return patches if self.time is None else patches + self.time[:, None, None].astype(patches.dtype)


def cvt(
    parts, *, depths: tuple[int, int, int] = (1, 2, 10), joint: str = "last", scale: str = "width", rngs
) -> Classifier:
    """CvT, a host of HaViT's dictionary: three stages, class tokens in the last one alone.

    `parts` give width and heads of the first stage, which the second has 3 and the third 6 times (CvT-13: 64 and 1);
    depth is the sum of `depths`. A dictionary has the width of its stage. CvT has no table of positions: convolutions
    tell where in a frame a patch is. When, only a model with joint attention asks, and a table of frames, added where
    its first joint stage begins, says so.

    Args:
        depths: blocks of each stage.
        joint: the stages that attend over all frames, 'none', 'last' or 'all'. With 'none' each frame has a class
            token, features are averaged and the model is blind to order; otherwise the clip has one.
        scale: of the scores, 'width', 1/sqrt(d) as the public CvT, or 'heads', 1/sqrt(d/h).
    Raises:
        ConfigError: another patch than 4, a clip smaller than that, an unknown choice, cosine as kernel.
    """
    require(joint in ("none", "last", "all"), f"model.joint={joint!r} must be none, last or all.")
    require(len(depths) == 3 and min(depths) >= 1, f"model.depths={tuple(depths)} must be three numbers of at least 1.")
    check_depth(parts, depths)
    parts.require_einsum_backend("CvT's attention")
    require(parts.patch_size == 4, f"model.patch_size={parts.patch_size} must be 4, CvT's first stride.")
    require(parts.image_size >= 4, f"model.image_size={parts.image_size} must be at least 4.")
    dtype, stages, embeddings = parts.compute["dtype"], [], []
    first_joint = {"none": 3, "last": 2, "all": 0}[joint]
    stems = (dict(kernel=7, stride=4, padding=2), *[dict(kernel=3, stride=2, padding=1)] * 2)
    channels = 3
    for i, (depth, stem) in enumerate(zip(depths, stems, strict=True)):
        own = replace(parts, width=parts.width * WIDTHS[i], heads=parts.heads * HEADS[i])
        scheme = Joint() if i >= first_joint else Frame()

        def attention(rngs, own=own, scheme=scheme):
            return ConvolutionalAttention(
                scheme,
                own.width,
                own.heads,
                scale=scale,
                dictionary=own.make_dictionary(rngs),
                kernel=own.kernel,
                masked=own.masked,
                rngs=rngs,
                **own.compute,
            )

        stages.append(own.stage(depth, attention, own.mlp(norm_epsilon=NORM_EPSILON)))
        embeddings.append(
            ConvolutionalEmbedding(
                channels, own.width, **stem, frames=parts.frames if i == first_joint else None, dtype=dtype, rngs=rngs
            )
        )
        channels = own.width
    return pyramid(
        parts, embeddings, stages, width=channels, num_class_tokens=parts.frames if joint == "none" else 1, rngs=rngs
    )
