"""Tiny models with every parameter drawn at random: what starts at zero would hide what it multiplies."""

import math
import zlib
from functools import cache, partial

import jax
import numpy as np
from flax import nnx

from vidformers import build

TINY = dict(num_classes=5, frames=4, image_size=32, patch_size=8, width=32, heads=4, depth=2)
# What a model, or after a colon a variant of it, needs beside that to be tiny and to have all its parts.
SMALL = {
    "mevit": dict(motion_blocks=2),
    "havit": dict(dictionary=3),
    "vtn": dict(temporal_depth=2, window=(4,), temporal_dropout=0.0, head_dropout=0.0),
    "vtn:resnet": dict(
        temporal_depth=2, window=(4,), temporal_dropout=0.0, head_dropout=0.0, backbone="resnet", depths=(1, 1), stem=8
    ),
    "swin": dict(patch_size=4, heads=2, width=16, depth=2, depths=(2,), window=(2, 4, 4)),
    "cvt": dict(patch_size=4, heads=1, width=8, depth=4, depths=(1, 1, 2)),
    "stat": dict(width=16, heads=2, depth=4, depths=(1, 1, 2)),
}


def _known(options):
    """Those options that this version of XLA has."""

    def has(name, value):
        try:
            return jax.jit(lambda x: x, compiler_options={name: value}).lower(0).compile() is not None
        except jax.errors.JaxRuntimeError:
            return False

    return {name: value for name, value in options.items() if has(name, value)}


# Most of a test's time is compilation, and most of that the optimising of code that runs once. Without optimising, the
# emitters of fusions are what takes longest.
QUICK = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
quick_jit = partial(jax.jit, compiler_options=QUICK)


def randomise(shapes, seed: int = 0):
    """Values for a tree of shapes, by seed and path: models share the values of the paths they share.

    Kernels keep the size of what passes them; the rest is normal around 0, a norm's scale around 1.
    """

    def draw(path, leaf):
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        kernel, scale = (getattr(path[-1], "key", None) == name for name in ("kernel", "scale"))
        convolution = "convolution" in jax.tree_util.keystr(path)
        spread = math.prod(leaf.shape[-4 if convolution else -2 : -1]) ** -0.5 if kernel else 0.3
        return rng.normal(float(scale), spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def maker(name: str, **options):
    """What builds a tiny model, given rngs."""
    return partial(build, name.partition(":")[0], **{**TINY, **SMALL.get(name, {}), **options})


def make(name: str, **options):
    """(graph, random parameters) of a tiny model; nothing is compiled."""
    graph, state = nnx.split(nnx.eval_shape(lambda: maker(name, **options)(rngs=nnx.Rngs(0))))
    return graph, randomise(nnx.to_pure_dict(state))


def initial(name: str, **options):
    """The parameters a tiny model starts with."""
    return quick_jit(lambda: nnx.to_pure_dict(nnx.state(maker(name, **options)(rngs=nnx.Rngs(0)))))()


@cache
def compiled(name: str, **options):
    """(f(parameters, video, key=None) -> logits compiled, random parameters); compiled once a model."""
    graph, parameters = make(name, **options)
    return quick_jit(lambda p, video, key=None: nnx.merge(graph, p)(video, key)), parameters


def clips(count: int = 4, seed: int = 0, frames: int = TINY["frames"], size: int = TINY["image_size"]):
    """uint8 clips of noise (b t y x 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3), np.uint8)
