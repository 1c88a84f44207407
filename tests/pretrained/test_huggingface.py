"""Our models give the answers of Hugging Face's models with the same weights.

goldens/make_huggingface.py writes the weights and the answers.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import make, quick_jit

from vidformers.layers.tokens import Tokens

GOLDENS = Path(__file__).parents[1] / "goldens"
GEOMETRY = dict(num_classes=5, frames=3, image_size=24, patch_size=8, width=32, heads=4, depth=2)


def archive(name):
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays)


def linear(arrays, *names):
    """Returns PyTorch's linear layers (out, in) as one kernel (in, out), concatenated along the outputs."""
    return {
        "kernel": np.concatenate([arrays[f"{name}.weight"].T for name in names], axis=1),
        "bias": np.concatenate([arrays[f"{name}.bias"] for name in names]),
    }


def norm(arrays, name):
    return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}


def block(arrays, layer):
    """Returns the sublayers of one block: time attention if there is one, space or joint attention, MLP."""
    qkv = [f"{layer}.attention.attention.{name}" for name in ("query", "key", "value")]
    if f"{layer}.attention.attention.qkv.weight" in arrays:
        qkv = [f"{layer}.attention.attention.qkv"]
    sublayers = [
        {
            "norm": norm(arrays, f"{layer}.layernorm_before"),
            "qkv": linear(arrays, *qkv),
            "out": linear(arrays, f"{layer}.attention.output.dense"),
        },
        {
            "norm": norm(arrays, f"{layer}.layernorm_after"),
            "wide": linear(arrays, f"{layer}.intermediate.dense"),
            "out": linear(arrays, f"{layer}.output.dense"),
        },
    ]
    if f"{layer}.temporal_dense.weight" in arrays:
        time = f"{layer}.temporal_attention"
        sublayers.insert(
            0,
            {
                "norm": norm(arrays, f"{layer}.temporal_layernorm"),
                "qkv": linear(arrays, f"{time}.attention.qkv"),
                "out": linear(arrays, f"{time}.output.dense"),
                "extra": linear(arrays, f"{layer}.temporal_dense"),
            },
        )
    return dict(enumerate(sublayers))


def parameters(arrays, prefix=""):
    """Returns an archive as the parameters of our model. Every array is used."""

    def array(name):
        return arrays[f"{prefix}{name}"]

    patch = array("embeddings.patch_embeddings.projection.weight")
    blocks = [block(arrays, f"{prefix}encoder.layer.{i}") for i in range(2)]
    embedding = {
        "patch": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch)),
            "bias": array("embeddings.patch_embeddings.projection.bias"),
        },
        "space": array("embeddings.position_embeddings")[0],
    }
    if f"{prefix}embeddings.time_embeddings" in arrays:
        embedding["time"] = array("embeddings.time_embeddings")[0]
    encoder = {
        "embedding": embedding,
        "class_token": array("embeddings.cls_token")[0, 0],
        "stages": {0: {"layers": {"sublayers": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}}},
        "norm": norm(arrays, f"{prefix}layernorm"),
    }
    return {
        "encoder": encoder,
        "head": linear(arrays, "classifier")
        if "classifier.weight" in arrays
        else {"kernel": np.zeros((32, 5), np.float32), "bias": np.zeros(5, np.float32)},
    }


def mapped_model(name, arrays, prefix="", **options):
    """Returns (graph, parameters) of our model with the arrays of the archive, which must have its shapes."""
    graph, drawn = make(name, **{**GEOMETRY, **options})
    mapped = parameters(arrays, prefix)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), drawn, mapped)
    return graph, mapped


@partial(quick_jit, static_argnums=0)
def logits(graph, parameters, video):
    return nnx.merge(graph, parameters)(video)


@pytest.mark.quick
@pytest.mark.parametrize("golden, name", [("timesformer_divided", "timesformer"), ("timesformer_joint", "joint")])
def test_logits_equal_those_of_hugging_face(golden, name):
    arrays = archive(golden)
    graph, mapped = mapped_model(name, arrays, "timesformer.")
    np.testing.assert_allclose(logits(graph, mapped, arrays["input"]), arrays["output"], rtol=0, atol=1e-4)


def test_space_only_logits_average_over_frames():
    """Hugging Face returns one row of logits per frame; ours is their mean. Neither has positions of frames."""
    arrays = archive("timesformer_space_only")
    graph, mapped = mapped_model("vit", arrays, "timesformer.")
    expected = arrays["output"].reshape(2, 3, 5).mean(1)
    np.testing.assert_allclose(logits(graph, mapped, arrays["input"]), expected, rtol=0, atol=1e-4)


def test_every_token_of_an_image_model_equals_hugging_face():
    arrays = archive("vit")
    graph, mapped = mapped_model("vit", arrays, frames=1)

    def run(parameters, video):
        model = nnx.merge(graph, parameters)
        encoder = model.encoder
        patches = encoder.embedding(video)
        tokens = encoder.stages[0](Tokens(patches, encoder.initial_class_tokens(patches), encoder.embedding.grid))
        return model.features(video), encoder.norm(tokens.patches)

    features, patches = quick_jit(run)(mapped, arrays["input"][:, None])
    np.testing.assert_allclose(features, arrays["output"][:, 0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(patches.reshape(2, 9, 32), arrays["output"][:, 1:], rtol=0, atol=1e-4)
