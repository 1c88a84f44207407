"""Weights of other libraries, drawn by the names of their arrays, as files and as models here."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from drawn import draw
from flax import nnx
from tiny import quick_jit

from vidformers import build
from vidformers.pretrained import Init, load
from vidformers.pretrained.fit import flatten

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "pretrained.json").read_text())
SIDE, CLASSES = 64, 7
SHAPE = dict(num_classes=CLASSES, image_size=SIDE, patch_size=16, width=192, heads=3, depth=3)
TIGHT = dict(rtol=0, atol=1e-4)


def arrays_of(golden):
    return {name: draw(name, tuple(shape)) for name, shape in GOLDENS[golden]["arrays"].items()}


def write(folder, arrays, about=None):
    """A file of safetensors with a config beside it; gives their folder."""
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(about or {}))
    return str(folder)


@cache
def shell(name, **options):
    """(graph, paths of its parameters, make_model) of a model."""
    make_model = partial(build, name, **SHAPE | options)
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    return graph, list(flatten(nnx.to_pure_dict(state))), make_model


def started(weights, name, init=None, class_names=None, **options):
    """(graph, parameters that a run starts from, what was loaded); no more is drawn than the weights leave."""
    graph, paths, make_model = shell(name, **options)
    fields = dict(weights=weights, head="as_is", allow=("normalisation",)) | (init or {})
    pretrained = load(Init(**fields), make_model, class_names)

    left = [path for path in paths if path not in pretrained.values]

    @quick_jit
    def draw_left(key):
        initial = flatten(nnx.to_pure_dict(nnx.state(make_model(rngs=nnx.Rngs(key)))))
        return [initial[path] for path in left]

    rest = draw_left(jax.random.key(0)) if left else []
    return graph, nested(pretrained.values | dict(zip(left, rest, strict=True))), pretrained


def nested(leaves):
    """What `flatten` has flattened."""
    tree = {}
    for (*path, last), leaf in leaves.items():
        inner = tree
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = leaf
    return tree


def loaded(*arguments, **options):
    """(video -> (logits, features), what was loaded), the arguments being those of `started`."""
    graph, parameters, pretrained = started(*arguments, **options)

    @quick_jit
    def run(parameters, video):
        model = nnx.merge(graph, parameters)
        features = model.features(video)
        return model.head(features), features

    return partial(run, parameters), pretrained
