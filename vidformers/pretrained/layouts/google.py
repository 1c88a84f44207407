"""The .npz archives of Google's ViT and AugReg, and ViT and ViViT of Scenic.

Names: `vit_jax/models_vit.py` of google-research/vision_transformer, and `scenic/projects/vivit/model.py` and
`scenic/projects/baselines/vit.py` of google-research/scenic.
"""

from typing import NamedTuple

import numpy as np

from vidformers.errors import require
from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import HALF, TransformerWeights

WITH_TANH = ("ViViT of Scenic", "ViT of Scenic")  # layouts of weights trained with the tanh approximation of GELU


class _Names(NamedTuple):
    """The names of the parts of a block, and of the head."""

    attention: str
    norm: str
    mlp: str
    head: str


_GOOGLE = _Names("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3", "head")
_SCENIC = _Names("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0", "output_projection")


def read(arrays) -> TransformerWeights:
    """Converts the arrays. Kernels are (in, out) already, with the heads on axes of their own."""
    return _read(arrays, _GOOGLE, "ViT of Google")


def read_scenic(arrays) -> TransformerWeights:
    """Converts the arrays, whose kernels are as in `read`. The kernel of the patches tells images from video.

    A file does not say how many frames its joint positions span. `num_frames` in a config.json beside it can.
    """
    weights = _read(arrays, _SCENIC, "ViT of Scenic")
    if weights.patch["kernel"].ndim == 5:
        frames = arrays.number("num_frames")
        weights.layout, weights.joint_positions = "ViViT of Scenic", True
        weights.position_frames = frames and frames // len(weights.patch["kernel"])
    return weights


def _read(arrays, names: _Names, layout: str) -> TransformerWeights:
    layers = arrays.layer_count(r"Transformer/encoderblock_(\d+)/")
    return TransformerWeights(
        layout=layout,
        patch=_linear(arrays, "embedding"),
        class_tokens=arrays["cls"][0],
        space=arrays["Transformer/posembed_input/pos_embedding"][0],
        blocks=[_block(arrays, f"Transformer/encoderblock_{i}", names) for i in range(layers)],
        norm=_norm(arrays, "Transformer/encoder_norm"),
        head=_linear(arrays, names.head) if f"{names.head}/kernel" in arrays else None,
        normalisation=HALF,
        heads=_heads(arrays, "Transformer/encoderblock_0", names),
    )


def _heads(arrays, block, names: _Names) -> int:
    """Returns the number of heads of a block, an axis of its kernel (d, heads, d / heads) of queries."""
    shape = arrays[f"{block}/{names.attention}/query/kernel"].shape
    require(len(shape) == 3 and shape[1] > 0, f"the queries of {block!r} have a kernel of shape {shape}, without heads")
    return shape[1]


def _linear(arrays, name):
    return {"kernel": arrays[f"{name}/kernel"], "bias": arrays[f"{name}/bias"]}


def _norm(arrays, name):
    return {"scale": arrays[f"{name}/scale"], "bias": arrays[f"{name}/bias"]}


def _block(arrays, block, names: _Names):
    attention, width, heads = f"{block}/{names.attention}", arrays["cls"].shape[-1], _heads(arrays, block, names)
    size, parts = width // heads, ("query", "key", "value")
    kernels = [arrays.shaped(f"{attention}/{part}/kernel", (width, heads, size)) for part in parts]
    biases = [arrays.shaped(f"{attention}/{part}/bias", (heads, size)) for part in parts]
    qkv = {"kernel": np.concatenate(kernels, axis=1).reshape(width, -1), "bias": np.concatenate(biases).ravel()}
    kernel = arrays.shaped(f"{attention}/out/kernel", (heads, size, width))
    out = {"kernel": kernel.reshape(-1, width), "bias": arrays[f"{attention}/out/bias"]}
    wide, narrow = (_linear(arrays, f"{block}/{names.mlp}/Dense_{i}") for i in (0, 1))
    return {
        "space": {"norm": _norm(arrays, f"{block}/LayerNorm_0"), "qkv": qkv, "out": out},
        "mlp": {"norm": _norm(arrays, f"{block}/{names.norm}"), "wide": wide, "out": narrow},
    }


register("ViT of Google", read, f"Transformer/encoderblock_0/{_GOOGLE.attention}/query/kernel")
register(
    "ViT and ViViT of Scenic",
    read_scenic,
    f"Transformer/encoderblock_0/{_SCENIC.attention}/query/kernel",
    "embedding/kernel",
)
