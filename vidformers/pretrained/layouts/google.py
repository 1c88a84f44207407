"""The .npz archives of Google's ViT and AugReg.

Names: `vit_jax/models_vit.py` of google-research/vision_transformer.
"""

import numpy as np

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import HALF, TransformerWeights

_ATTENTION = "MultiHeadDotProductAttention_1"


def read(arrays) -> TransformerWeights:
    """Converts the arrays. Kernels are (in, out) already, with the heads on axes of their own."""
    layers = arrays.layer_count(r"Transformer/encoderblock_(\d+)/")
    return TransformerWeights(
        layout="ViT of Google",
        patch=_linear(arrays, "embedding"),
        class_tokens=arrays["cls"][0],
        space=arrays["Transformer/posembed_input/pos_embedding"][0],
        blocks=[_block(arrays, f"Transformer/encoderblock_{i}") for i in range(layers)],
        norm=_norm(arrays, "Transformer/encoder_norm"),
        head=_linear(arrays, "head") if "head/kernel" in arrays else None,
        normalisation=HALF,
        heads=arrays.metadata.get("num_attention_heads"),
    )


def _linear(arrays, name):
    return {"kernel": arrays[f"{name}/kernel"], "bias": arrays[f"{name}/bias"]}


def _norm(arrays, name):
    return {"scale": arrays[f"{name}/scale"], "bias": arrays[f"{name}/bias"]}


def _block(arrays, block):
    attention = f"{block}/{_ATTENTION}"
    kernels = [arrays[f"{attention}/{name}/kernel"] for name in ("query", "key", "value")]
    biases = [arrays[f"{attention}/{name}/bias"].ravel() for name in ("query", "key", "value")]
    width = len(kernels[0])
    qkv = {
        "kernel": np.concatenate([kernel.reshape(width, -1) for kernel in kernels], axis=1),
        "bias": np.concatenate(biases),
    }
    out = {"kernel": arrays[f"{attention}/out/kernel"].reshape(-1, width), "bias": arrays[f"{attention}/out/bias"]}
    wide, narrow = (_linear(arrays, f"{block}/MlpBlock_3/Dense_{i}") for i in (0, 1))
    return {
        "space": {"norm": _norm(arrays, f"{block}/LayerNorm_0"), "qkv": qkv, "out": out},
        "mlp": {"norm": _norm(arrays, f"{block}/LayerNorm_2"), "wide": wide, "out": narrow},
    }


register("ViT of Google", read, f"Transformer/encoderblock_0/{_ATTENTION}/query/kernel")
