"""Tiny models with random parameters. Parameters that start at zero would hide errors in what they multiply."""

import math
import zlib
from functools import cache, partial

import jax
import numpy as np
from flax import nnx

from vidformers import build

TINY = dict(num_classes=5, frames=4, image_size=32, patch_size=8, width=32, heads=4, depth=2)
# The fields that make a model, or its variant after a colon, tiny and give it all its sublayers.
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
    """Returns the options that this version of XLA has."""

    def is_known(name, value):
        try:
            return jax.jit(lambda x: x, compiler_options={name: value}).lower(0).compile() is not None
        except jax.errors.JaxRuntimeError:
            return False

    return {name: value for name, value in options.items() if is_known(name, value)}


# Most of the time of a test is compilation, and most of compilation is optimisation of code that runs once. Without
# optimisation, the fusion emitters take longest.
QUICK = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
quick_jit = partial(jax.jit, compiler_options=QUICK)


def randomise(shapes, seed: int = 0):
    """Returns random values for a tree of shapes. A value depends on the seed, its path and its shape alone.

    The deviation of a kernel keeps the size of its inputs. Other values are normal around 0, scales of norms around 1.
    """

    def draw(path, leaf):
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        kernel, scale = (getattr(path[-1], "key", None) == name for name in ("kernel", "scale"))
        convolution = "convolution" in jax.tree_util.keystr(path)
        deviation = math.prod(leaf.shape[-4 if convolution else -2 : -1]) ** -0.5 if kernel else 0.3
        return rng.normal(float(scale), deviation, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def maker(name: str, **options):
    """Returns make_model(rngs=...) of a tiny model."""
    return partial(build, name.partition(":")[0], **{**TINY, **SMALL.get(name, {}), **options})


def make(name: str, **options):
    """Returns (graph, random parameters) of a tiny model. Nothing is compiled."""
    graph, state = nnx.split(nnx.eval_shape(lambda: maker(name, **options)(rngs=nnx.Rngs(0))))
    return graph, randomise(nnx.to_pure_dict(state))


def initial(name: str, **options):
    """Returns the initial parameters of a tiny model."""
    return quick_jit(lambda: nnx.to_pure_dict(nnx.state(maker(name, **options)(rngs=nnx.Rngs(0)))))()


@cache
def compiled(name: str, **options):
    """Returns (f(parameters, video, key=None) -> logits, random parameters) of a tiny model; f is compiled once."""
    graph, parameters = make(name, **options)
    return quick_jit(lambda p, video, key=None: nnx.merge(graph, p)(video, key)), parameters


def clips(count: int = 4, seed: int = 0, frames: int = TINY["frames"], size: int = TINY["image_size"]):
    """Returns clips of random uint8 pixels (b t y x 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3), np.uint8)
