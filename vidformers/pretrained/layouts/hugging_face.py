"""ViT, DeiT, DINOv2, TimeSformer and ViViT of Hugging Face."""

import numpy as np

from vidformers.errors import ConfigError
from vidformers.pretrained.layouts.structure import HALF, IMAGENET, Names, Transformer, has, pretraining

recognised = has("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.attention.output.dense.weight")


def read(names) -> Transformer:
    """Layer scale is multiplied into the projection it follows, which is the same."""
    if "embeddings.register_tokens" in names:
        raise ConfigError("its register tokens have no place in the models here")

    def block(number):
        at = f"encoder.layer.{number}"
        new = f"{at}.norm1.weight" in names  # DINOv2
        qkv = f"{at}.attention.attention"
        parts = [f"{qkv}.{part}" for part in ("query", "key", "value")]
        if f"{qkv}.qkv.weight" in names:
            parts = [f"{qkv}.qkv"]
        scales = [
            names(f"{at}.layer_scale{i}.lambda1") if f"{at}.layer_scale{i}.lambda1" in names else None for i in (1, 2)
        ]
        before, after, wide, out = (
            f"{at}.{name}"
            for name in (
                ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
                if new
                else ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
            )
        )
        found = {
            "space": {
                "norm": names.norm(before),
                "qkv": names.linear(*parts),
                "out": names.linear(f"{at}.attention.output.dense", scale=scales[0]),
            },
            "mlp": {"norm": names.norm(after), "wide": names.linear(wide), "out": names.linear(out, scale=scales[1])},
        }
        if f"{at}.temporal_dense.weight" in names:
            time = f"{at}.temporal_attention"
            found["time"] = {
                "norm": names.norm(f"{at}.temporal_layernorm"),
                "qkv": names.linear(f"{time}.attention.qkv"),
                "out": names.linear(f"{time}.output.dense"),
                "extra": names.linear(f"{at}.temporal_dense"),
            }
        return found

    blocks = [block(i) for i in range(names.count(r"encoder\.layer\.(\d+)\."))]
    space = names("embeddings.position_embeddings")[0]
    patch = names.convolution("embeddings.patch_embeddings.projection")
    time = names("embeddings.time_embeddings")[0] if "embeddings.time_embeddings" in names else None
    layout, normalisation, tubes = "ViT of Hugging Face", None, None
    if patch["kernel"].ndim == 5:
        layout, normalisation, frames = "ViViT of Hugging Face", HALF, names.about.get("num_frames")
        tubes = frames // len(patch["kernel"]) if isinstance(frames, int) else None
    elif "embeddings.distillation_token" in names:
        layout, normalisation = "DeiT of Hugging Face", IMAGENET  # distilled likewise
        space = np.delete(space, 1, axis=0)
    elif "encoder.layer.0.norm1.weight" in names:
        layout, normalisation = "DINOv2 of Hugging Face", IMAGENET
    elif "time" in blocks[0] or time is not None:
        layout = "TimeSformer of Hugging Face"
    outer = Names(names.arrays, used=names.used)  # the head lies outside of the prefix
    return Transformer(
        layout=layout,
        patch=patch,
        classes=names("embeddings.cls_token")[0],
        space=space,
        blocks=blocks,
        norm=names.norm("layernorm"),
        head=outer.head("classifier") or outer.head("cls_classifier"),
        joint=patch["kernel"].ndim == 5,
        tubes=tubes,
        time=time,
        normalisation=normalisation,
        left=pretraining(names),
    )
