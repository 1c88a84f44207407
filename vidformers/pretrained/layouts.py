"""The layouts in which others keep a ViT or a TimeSformer, told apart by their names, as one structure.

Every layout gives the same thing: sublayers by what they attend to, with kernels of (in, out). Nothing is computed
that changes what the model computes; layer scale is multiplied into the projection it follows, which is the same.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np

from vidformers.errors import ConfigError


@dataclass
class Transformer:
    """A transformer over patches, of an image or of a clip.

    Attributes:
      layout: whose, in words.
      patch: {'kernel': (y, x, c, d), 'bias': (d)}, or (t, y, x, c, d) of tubelets.
      classes: (c, d), the class token first.
      space: (c + n, d), positions of the class tokens and of the patches, row by row.
      time: (t, d), positions of the frames, or None.
      blocks: for each layer the sublayers 'time' (where there is one), 'space' and 'mlp', trees of arrays as those of
        `SelfAttention` and `Mlp`.
      norm: the last one.
      head: {'kernel': (d, classes), 'bias': (classes)}, or None.
      left: what the file holds that has no place in any model here, in words.
    """
    layout: str
    patch: dict
    classes: np.ndarray
    space: np.ndarray
    blocks: list[dict]
    norm: dict
    head: dict | None = None
    time: np.ndarray | None = None
    left: tuple[str, ...] = ()


@dataclass
class Names:
    """The arrays of a file, which remembers which ones were asked for."""
    arrays: dict[str, np.ndarray]
    prefix: str = ""
    used: set = field(default_factory=set)

    def __contains__(self, name):
        return self.prefix + name in self.arrays

    def __call__(self, name) -> np.ndarray:
        name = self.prefix + name
        if name not in self.arrays:
            raise ConfigError(f"the array {name!r} is missing")
        self.used.add(name)
        return np.asarray(self.arrays[name], np.float32)

    def count(self, pattern) -> int:
        """How many numbers from 0 on stand where `pattern` has its group."""
        found = {int(match[1]) for name in self.arrays if (match := re.match(re.escape(self.prefix) + pattern, name))}
        if found != set(range(len(found))):
            raise ConfigError(f"the layers {sorted(found)} are not numbered from 0 on")
        return len(found)

    def unused(self) -> list[str]:
        return [name for name in self.arrays if name not in self.used]

    # PyTorch keeps (out, in) where we keep (in, out), and convolutions as (out, in, y, x).

    def linear(self, *names, scale=None):
        """Linear layers side by side, without a bias where there is none."""
        kernel = np.concatenate([self(f"{name}.weight").T for name in names], axis=1)
        bias = np.concatenate([self(f"{name}.bias") if f"{name}.bias" in self else
                               np.zeros(len(self(f"{name}.weight")), np.float32) for name in names])
        if scale is not None:
            kernel, bias = kernel * scale, bias * scale
        return {"kernel": kernel, "bias": bias}

    def norm(self, name):
        return {"scale": self(f"{name}.weight"), "bias": self(f"{name}.bias")}

    def convolution(self, name):
        kernel = self(f"{name}.weight")
        return {"kernel": np.moveaxis(kernel, (1, 0), (-2, -1)), "bias": self(f"{name}.bias")}

    def head(self, name):
        return self.linear(name) if f"{name}.weight" in self and self(f"{name}.weight").ndim == 2 else None


def read(arrays) -> tuple[Transformer, Names]:
    """The transformer in the arrays of a file, and which of them it is made of.

    Raises:
      ConfigError: no layout has these names, or one of its arrays is missing; the sentence goes on from the path.
    """
    for recognised, layout in _LAYOUTS:
        if (prefix := recognised(arrays)) is not None:
            names = Names(arrays, prefix)
            return layout(names), names
    some = ", ".join(list(arrays)[:3])
    raise ConfigError(f"its names ({some}, ...) are those of no layout that is known: ViT of Google, timm or Hugging "
                      "Face, DeiT, DINOv2, TimeSformer")


def _has(*endings):
    """A function of arrays that gives the prefix before all of these names, or None."""
    def recognised(arrays):
        for name in arrays:
            if name.endswith(endings[0]):
                prefix = name.removesuffix(endings[0])
                if prefix.count(".") <= 3 and all(prefix + ending in arrays for ending in endings):
                    return prefix
        return None
    return recognised


def _google(names):
    """The archives of Google's ViT and AugReg: kernels of (in, out) already, heads apart."""
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
        qkv = {"kernel": np.concatenate([part.reshape(width, -1) for part in parts], axis=1),
               "bias": np.concatenate(biases)}
        out = {"kernel": names(f"{attention}/out/kernel").reshape(-1, width), "bias": names(f"{attention}/out/bias")}
        dense = [linear(f"{at}/MlpBlock_3/Dense_{i}") for i in (0, 1)]
        return {"space": {"norm": norm(f"{at}/LayerNorm_0"), "qkv": qkv, "out": out},
                "mlp": {"norm": norm(f"{at}/LayerNorm_2"), "wide": dense[0], "out": dense[1]}}

    blocks = [block(i) for i in range(names.count(r"Transformer/encoderblock_(\d+)/"))]
    return Transformer("ViT of Google", linear("embedding"), names("cls")[0],
                       names("Transformer/posembed_input/pos_embedding")[0], blocks, norm("Transformer/encoder_norm"),
                       linear("head") if "head/kernel" in names else None)


def _timm(names):
    """timm, and what was made from it: DeiT, DINOv2, and TimeSformer of its authors."""
    if "register_tokens" in names or "reg_token" in names:
        raise ConfigError("its register tokens have no place in the models here")

    def block(number):
        at = f"blocks.{number}"
        scales = [names(f"{at}.ls{i}.gamma") if f"{at}.ls{i}.gamma" in names else None for i in (1, 2)]
        found = {"space": {"norm": names.norm(f"{at}.norm1"), "qkv": names.linear(f"{at}.attn.qkv"),
                           "out": names.linear(f"{at}.attn.proj", scale=scales[0])},
                 "mlp": {"norm": names.norm(f"{at}.norm2"), "wide": names.linear(f"{at}.mlp.fc1"),
                         "out": names.linear(f"{at}.mlp.fc2", scale=scales[1])}}
        if f"{at}.temporal_attn.qkv.weight" in names:
            found["time"] = {"norm": names.norm(f"{at}.temporal_norm1"), "qkv": names.linear(f"{at}.temporal_attn.qkv"),
                             "out": names.linear(f"{at}.temporal_attn.proj"),
                             "extra": names.linear(f"{at}.temporal_fc")}
        return found

    blocks = [block(i) for i in range(names.count(r"blocks\.(\d+)\."))]
    layout = "TimeSformer" if "time" in blocks[0] else "ViT of timm"
    if "blocks.0.ls1.gamma" in names:
        layout = "ViT of timm with layer scale"
    classes, space, left = names("cls_token")[0], names("pos_embed")[0], _pretraining(names)
    if "dist_token" in names:
        layout = "DeiT, distilled"  # its other token, whose position is the second, stays unused
        space = np.delete(space, 1, axis=0)
    elif math.isqrt(len(space)) ** 2 == len(space):
        space = np.concatenate([np.zeros_like(space[:1]), space])  # the class token has no position
    time = names("time_embed")[0] if "time_embed" in names else None
    return Transformer(layout, names.convolution("patch_embed.proj"), classes, space, blocks, names.norm("norm"),
                       names.head("head"), time, left)


def _pretraining(names):
    """What only pretraining used."""
    found = [name for name in ("mask_token", "embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
             if name in names]
    for name in found:
        names(name)
    return tuple(found)


def _hugging_face(names):
    """ViT, DeiT, DINOv2 and TimeSformer of Hugging Face."""
    if "embeddings.register_tokens" in names:
        raise ConfigError("its register tokens have no place in the models here")

    def block(number):
        at = f"encoder.layer.{number}"
        new = f"{at}.norm1.weight" in names  # DINOv2
        qkv = f"{at}.attention.attention"
        parts = [f"{qkv}.{part}" for part in ("query", "key", "value")]
        if f"{qkv}.qkv.weight" in names:
            parts = [f"{qkv}.qkv"]
        scales = [names(f"{at}.layer_scale{i}.lambda1") if f"{at}.layer_scale{i}.lambda1" in names else None
                  for i in (1, 2)]
        before, after, wide, out = (f"{at}.{name}" for name in (
            ("norm1", "norm2", "mlp.fc1", "mlp.fc2") if new else
            ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")))
        found = {"space": {"norm": names.norm(before), "qkv": names.linear(*parts),
                           "out": names.linear(f"{at}.attention.output.dense", scale=scales[0])},
                 "mlp": {"norm": names.norm(after), "wide": names.linear(wide),
                         "out": names.linear(out, scale=scales[1])}}
        if f"{at}.temporal_dense.weight" in names:
            time = f"{at}.temporal_attention"
            found["time"] = {"norm": names.norm(f"{at}.temporal_layernorm"),
                             "qkv": names.linear(f"{time}.attention.qkv"), "out": names.linear(f"{time}.output.dense"),
                             "extra": names.linear(f"{at}.temporal_dense")}
        return found

    blocks = [block(i) for i in range(names.count(r"encoder\.layer\.(\d+)\."))]
    space = names("embeddings.position_embeddings")[0]
    layout, left = "ViT of Hugging Face", _pretraining(names)
    if "embeddings.distillation_token" in names:
        layout = "DeiT of Hugging Face"  # distilled likewise
        space = np.delete(space, 1, axis=0)
    elif "encoder.layer.0.norm1.weight" in names:
        layout = "DINOv2 of Hugging Face"
    time = names("embeddings.time_embeddings")[0] if "embeddings.time_embeddings" in names else None
    if "time" in blocks[0] or time is not None:
        layout = "TimeSformer of Hugging Face"
    outer = Names(names.arrays, used=names.used)  # the head lies outside of the prefix
    return Transformer(layout, names.convolution("embeddings.patch_embeddings.projection"),
                       names("embeddings.cls_token")[0], space, blocks, names.norm("layernorm"),
                       outer.head("classifier") or outer.head("cls_classifier"), time, left)


_LAYOUTS = (
    (_has("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"), _google),
    (_has("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"), _timm),
    (_has("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.attention.output.dense.weight"),
     _hugging_face),
)
