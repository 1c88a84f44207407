"""The archives of Google's ViT and AugReg."""

import numpy as np

from vidformers.pretrained.layouts.structure import HALF, Transformer, has

recognised = has("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel")


def read(names) -> Transformer:
    """Kernels of (in, out) already, heads apart."""

    def linear(name):
        return {"kernel": names(f"{name}/kernel"), "bias": names(f"{name}/bias")}

    def norm(name):
        return {"scale": names(f"{name}/scale"), "bias": names(f"{name}/bias")}

    def block(number):
        at = f"Transformer/encoderblock_{number}"
        attention = f"{at}/MultiHeadDotProductAttention_1"
        parts = [names(f"{attention}/{part}/kernel") for part in ("query", "key", "value")]
        width = len(parts[0])
        biases = [names(f"{attention}/{part}/bias").ravel() for part in ("query", "key", "value")]
        qkv = {
            "kernel": np.concatenate([part.reshape(width, -1) for part in parts], axis=1),
            "bias": np.concatenate(biases),
        }
        out = {"kernel": names(f"{attention}/out/kernel").reshape(-1, width), "bias": names(f"{attention}/out/bias")}
        dense = [linear(f"{at}/MlpBlock_3/Dense_{i}") for i in (0, 1)]
        return {
            "space": {"norm": norm(f"{at}/LayerNorm_0"), "qkv": qkv, "out": out},
            "mlp": {"norm": norm(f"{at}/LayerNorm_2"), "wide": dense[0], "out": dense[1]},
        }

    blocks = [block(i) for i in range(names.count(r"Transformer/encoderblock_(\d+)/"))]
    return Transformer(
        layout="ViT of Google",
        patch=linear("embedding"),
        classes=names("cls")[0],
        space=names("Transformer/posembed_input/pos_embedding")[0],
        blocks=blocks,
        norm=norm("Transformer/encoder_norm"),
        head=linear("head") if "head/kernel" in names else None,
        normalisation=HALF,
    )
