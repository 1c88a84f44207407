"""timm's ViT, and models whose code is based on it: DeiT, DINOv2, and TimeSformer of its authors.

Names: `timm/models/vision_transformer.py`, and `timesformer/models/vit.py` of facebookresearch/TimeSformer.
"""

import math

import numpy as np

from vidformers.errors import ConfigError
from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import IMAGENET, TIMESFORMER, TIMM_MLP, TransformerWeights


def read(arrays) -> TransformerWeights:
    """Converts the arrays. Layer scale is multiplied into the projection before it, so the output stays the same."""
    if "register_tokens" in arrays or "reg_token" in arrays:
        raise ConfigError("no model here has the register tokens that it was trained with")
    blocks = [_block(arrays, f"blocks.{i}") for i in range(arrays.layer_count(r"blocks\.(\d+)\."))]
    is_timesformer = "time" in blocks[0] or "time_embed" in arrays
    layout, normalisation = ("TimeSformer", TIMESFORMER) if is_timesformer else ("ViT of timm", None)
    if "blocks.0.ls1.gamma" in arrays:
        layout = "ViT of timm with layer scale"
    class_tokens, space = arrays["cls_token"][0], arrays["pos_embed"][0]
    if "dist_token" in arrays:
        layout, normalisation = "DeiT, distilled", IMAGENET  # the second token, for distillation, is not read
        space = np.delete(space, 1, axis=0)
    elif math.isqrt(len(space)) ** 2 == len(space):
        space = np.concatenate([np.zeros_like(space[:1]), space])  # the class token has no position
    return TransformerWeights(
        layout=layout,
        patch=arrays.convolution("patch_embed.proj"),
        class_tokens=class_tokens,
        space=space,
        blocks=blocks,
        norm=arrays.norm("norm"),
        head=arrays.head("head"),
        time=arrays["time_embed"][0] if "time_embed" in arrays else None,
        normalisation=normalisation,
        heads=arrays.number("num_attention_heads"),
        not_loaded=arrays.mark_pretraining_arrays(),
    )


def _block(arrays, block):
    scales = [arrays.get(f"{block}.ls{i}.gamma") for i in (1, 2)]
    sublayers = {
        "space": {
            "norm": arrays.norm(f"{block}.norm1"),
            "qkv": arrays.linear(f"{block}.attn.qkv"),
            "out": arrays.linear(f"{block}.attn.proj", scale=scales[0]),
        },
        "mlp": arrays.mlp(block, TIMM_MLP, scales[1]),
    }
    if f"{block}.temporal_attn.qkv.weight" in arrays:
        sublayers["time"] = {
            "norm": arrays.norm(f"{block}.temporal_norm1"),
            "qkv": arrays.linear(f"{block}.temporal_attn.qkv"),
            "out": arrays.linear(f"{block}.temporal_attn.proj"),
            "extra": arrays.linear(f"{block}.temporal_fc"),
        }
    return sublayers


register(
    "ViT, DeiT and DINOv2 of timm, TimeSformer of its authors",
    read,
    "blocks.0.attn.qkv.weight",
    "patch_embed.proj.weight",
    never="temporal_encoder.embeddings.position_embeddings.weight",  # a VTN, which contains a ViT of timm
)
