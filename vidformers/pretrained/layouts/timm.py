"""timm, and what was made from it: DeiT, DINOv2, and TimeSformer of its authors."""

import math

import numpy as np

from vidformers.errors import ConfigError
from vidformers.pretrained.layouts.structure import IMAGENET, TIMESFORMER, Transformer, has, pretraining

recognised = has("blocks.0.attn.qkv.weight", "patch_embed.proj.weight")


def read(names) -> Transformer:
    """Layer scale is multiplied into the projection it follows, which is the same."""
    if "register_tokens" in names or "reg_token" in names:
        raise ConfigError("its register tokens have no place in the models here")

    def block(number):
        at = f"blocks.{number}"
        scales = [names(f"{at}.ls{i}.gamma") if f"{at}.ls{i}.gamma" in names else None for i in (1, 2)]
        found = {
            "space": {
                "norm": names.norm(f"{at}.norm1"),
                "qkv": names.linear(f"{at}.attn.qkv"),
                "out": names.linear(f"{at}.attn.proj", scale=scales[0]),
            },
            "mlp": {
                "norm": names.norm(f"{at}.norm2"),
                "wide": names.linear(f"{at}.mlp.fc1"),
                "out": names.linear(f"{at}.mlp.fc2", scale=scales[1]),
            },
        }
        if f"{at}.temporal_attn.qkv.weight" in names:
            found["time"] = {
                "norm": names.norm(f"{at}.temporal_norm1"),
                "qkv": names.linear(f"{at}.temporal_attn.qkv"),
                "out": names.linear(f"{at}.temporal_attn.proj"),
                "extra": names.linear(f"{at}.temporal_fc"),
            }
        return found

    blocks = [block(i) for i in range(names.count(r"blocks\.(\d+)\."))]
    layout, normalisation = ("TimeSformer", TIMESFORMER) if "time" in blocks[0] else ("ViT of timm", None)
    if "blocks.0.ls1.gamma" in names:
        layout = "ViT of timm with layer scale"
    classes, space = names("cls_token")[0], names("pos_embed")[0]
    if "dist_token" in names:
        layout, normalisation = "DeiT, distilled", IMAGENET  # its other token, the second, stays unused
        space = np.delete(space, 1, axis=0)
    elif math.isqrt(len(space)) ** 2 == len(space):
        space = np.concatenate([np.zeros_like(space[:1]), space])  # the class token has no position
    time = names("time_embed")[0] if "time_embed" in names else None
    return Transformer(
        layout=layout,
        patch=names.convolution("patch_embed.proj"),
        classes=classes,
        space=space,
        blocks=blocks,
        norm=names.norm("norm"),
        head=names.head("head"),
        time=time,
        normalisation=normalisation,
        left=pretraining(names),
    )
