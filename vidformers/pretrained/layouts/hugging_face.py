"""ViT, DeiT, DINOv2, TimeSformer and ViViT of Hugging Face. Names: `save_pretrained` of transformers."""

import numpy as np

from vidformers.errors import ConfigError
from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import (
    HALF,
    HUGGING_FACE_MLP,
    IMAGENET,
    TIMESFORMER,
    TIMM_MLP,
    TransformerWeights,
)


def read(arrays) -> TransformerWeights:
    """Converts the arrays. Layer scale is multiplied into the projection before it, so the output stays the same."""
    if "embeddings.register_tokens" in arrays:
        raise ConfigError("no model here has the register tokens that it was trained with")
    blocks = [_block(arrays, f"encoder.layer.{i}") for i in range(arrays.layer_count(r"encoder\.layer\.(\d+)\."))]
    patch = arrays.convolution("embeddings.patch_embeddings.projection")
    space = arrays["embeddings.position_embeddings"][0]
    time = arrays["embeddings.time_embeddings"][0] if "embeddings.time_embeddings" in arrays else None
    has_tubelets = patch["kernel"].ndim == 5
    layout, normalisation, position_frames = "ViT of Hugging Face", None, None
    if has_tubelets:
        layout, normalisation, frames = "ViViT of Hugging Face", HALF, arrays.number("num_frames")
        position_frames = frames and frames // len(patch["kernel"])
    elif "embeddings.distillation_token" in arrays:
        layout, normalisation = "DeiT of Hugging Face", IMAGENET
        space = np.delete(space, 1, axis=0)  # the second token, for distillation, is not read
    elif "encoder.layer.0.norm1.weight" in arrays:
        layout, normalisation = "DINOv2 of Hugging Face", IMAGENET
    elif arrays.prefix == "timesformer." or "time" in blocks[0] or time is not None:
        layout, normalisation = "TimeSformer of Hugging Face", TIMESFORMER
    without_prefix = arrays.with_prefix("")  # the names of the head have no prefix
    return TransformerWeights(
        layout=layout,
        patch=patch,
        class_tokens=arrays["embeddings.cls_token"][0],
        space=space,
        blocks=blocks,
        norm=arrays.norm("layernorm"),
        head=without_prefix.head("classifier") or without_prefix.head("cls_classifier"),
        joint_positions=has_tubelets,
        position_frames=position_frames,
        time=time,
        normalisation=normalisation,
        heads=arrays.number("num_attention_heads"),
        not_loaded=arrays.mark_pretraining_arrays(),
    )


def _block(arrays, block):
    norm, mlp = "layernorm_before", HUGGING_FACE_MLP
    if f"{block}.norm1.weight" in arrays:  # DINOv2
        norm, mlp = "norm1", TIMM_MLP
    attention = f"{block}.attention.attention"
    qkv = [f"{attention}.{name}" for name in ("query", "key", "value")]
    if f"{attention}.qkv.weight" in arrays:
        qkv = [f"{attention}.qkv"]
    scales = [arrays.get(f"{block}.layer_scale{i}.lambda1") for i in (1, 2)]
    sublayers = {
        "space": {
            "norm": arrays.norm(f"{block}.{norm}"),
            "qkv": arrays.linear(*qkv),
            "out": arrays.linear(f"{block}.attention.output.dense", scale=scales[0]),
        },
        "mlp": arrays.mlp(block, mlp, scales[1]),
    }
    if f"{block}.temporal_dense.weight" in arrays:
        sublayers["time"] = {
            "norm": arrays.norm(f"{block}.temporal_layernorm"),
            "qkv": arrays.linear(f"{block}.temporal_attention.attention.qkv"),
            "out": arrays.linear(f"{block}.temporal_attention.output.dense"),
            "extra": arrays.linear(f"{block}.temporal_dense"),
        }
    return sublayers


register(
    "ViT, DeiT, DINOv2, TimeSformer and ViViT of Hugging Face",
    read,
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.attention.output.dense.weight",
)
