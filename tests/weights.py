"""Weights of other libraries, drawn from the names of their arrays: as files, and as models of this library."""

import json
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from drawn import draw
from flax import nnx
from tiny import quick_jit

from vidformers import build
from vidformers.pretrained import Init, load
from vidformers.pretrained.assign import flatten

FOLDER = Path(__file__).parent / "goldens"
GOLDENS = json.loads((FOLDER / "pretrained.json").read_text()) | json.loads((FOLDER / "starts.json").read_text())
SIDE, CLASSES = 64, 7
SHAPE = dict(num_classes=CLASSES, image_size=SIDE, patch_size=16, width=192, heads=3, depth=3)
TIGHT = dict(rtol=0, atol=1e-4)

draw_once = cache(draw)

# Tracing a model takes most of the time of a test, and tests load many files into one model.
load_module = import_module("vidformers.pretrained.load")
abstract_model = load_module.abstract_model = cache(load_module.abstract_model)


def arrays_of(golden):
    """Returns the arrays of a golden model, free to be changed."""
    return {name: draw_once(name, tuple(shape)).copy() for name, shape in GOLDENS[golden]["arrays"].items()}


def tiny_vit(*, width: int = 16, depth: int = 1, patches: int = 4, patch_size: int = 8, classes: int = 10):
    """Returns the arrays of a small ViT in timm's layout."""
    sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches, width),
        "patch_embed.proj.weight": (width, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (width,), f"blocks.{i}.{norm}.bias": (width,)}
        for name, size in sizes.items():
            shapes |= {f"blocks.{i}.{name}.weight": size, f"blocks.{i}.{name}.bias": size[:1]}
    return {name: draw(name, shape) for name, shape in shapes.items()}


def google(arrays, heads: int = 3):
    """Returns the arrays of a timm ViT with the names and shapes of Google's archives, after the layout of its code."""
    width, depth = arrays["cls_token"].shape[-1], len({name.split(".")[1] for name in arrays if "blocks" in name})
    found = {
        "cls": arrays["cls_token"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "head/kernel": arrays["head.weight"].T,
        "head/bias": arrays["head.bias"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
    }
    for i in range(depth):
        at, to = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{to}/LayerNorm_{number}/scale"] = arrays[f"{at}.{norm}.weight"]
            found[f"{to}/LayerNorm_{number}/bias"] = arrays[f"{at}.{norm}.bias"]
        attention = f"{to}/MultiHeadDotProductAttention_1"
        for part, kernel, bias in zip(
            ("query", "key", "value"),
            np.split(arrays[f"{at}.attn.qkv.weight"], 3),
            np.split(arrays[f"{at}.attn.qkv.bias"], 3),
            strict=True,
        ):
            found[f"{attention}/{part}/kernel"] = kernel.T.reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        found[f"{attention}/out/kernel"] = arrays[f"{at}.attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = arrays[f"{at}.attn.proj.bias"]
        for number, layer in enumerate(("fc1", "fc2")):
            found[f"{to}/MlpBlock_3/Dense_{number}/kernel"] = arrays[f"{at}.mlp.{layer}.weight"].T
            found[f"{to}/MlpBlock_3/Dense_{number}/bias"] = arrays[f"{at}.mlp.{layer}.bias"]
    return found


def write(folder, arrays, metadata=None):
    """Writes a file of safetensors and a config.json beside it. Returns their folder."""
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(metadata or {}))
    return str(folder)


@cache
def maker(name, **options):
    """Returns make_model(rngs=...) of a model with the shape of the golden models."""
    return partial(build, name, **SHAPE | options)


def fitted(weights, name, init=None, class_names=None, **options):
    """Returns the loaded weights. Nothing is compiled."""
    fields = dict(weights=weights, head="as_is", allow=("normalisation",)) | (init or {})
    return load(Init(**fields), maker(name, **options), class_names)


def start(make_model, pretrained):
    """Returns (graph, parameters) with which a run starts: the loaded values, and drawn ones for all others."""
    graph, state = nnx.split(abstract_model(make_model))
    new = [path for path in flatten(nnx.to_pure_dict(state)) if path not in pretrained.values]

    @quick_jit
    def draw_new(key):
        initial = flatten(nnx.to_pure_dict(nnx.state(make_model(rngs=nnx.Rngs(key)))))
        return [initial[path] for path in new]

    drawn = draw_new(jax.random.key(0)) if new else []
    return graph, nested(pretrained.values | dict(zip(new, drawn, strict=True)))


def nested(leaves):
    """Inverts `flatten`."""
    tree = {}
    for (*path, last), leaf in leaves.items():
        inner = tree
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = leaf
    return tree


def loaded(weights, name, init=None, class_names=None, **options):
    """Returns (video -> (logits, features), loaded weights); the arguments are those of `fitted`."""
    pretrained = fitted(weights, name, init, class_names, **options)
    return runner(maker(name, **options), pretrained), pretrained


def runner(make_model, pretrained):
    """Returns the compiled function video -> (logits, features) of a model that starts from loaded weights."""
    graph, parameters = start(make_model, pretrained)

    @quick_jit
    def run(parameters, video):
        model = nnx.merge(graph, parameters)
        features = model.features(video)
        return model.head(features), features

    return partial(run, parameters)
