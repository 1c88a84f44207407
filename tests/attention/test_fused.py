"""The choice of a backend of softmax attention, and how arguments of cuDNN are prepared. No GPU is needed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny import clips, compiled, make, maker, quick_jit

from vidformers.attention import fused, sharding
from vidformers.attention.core import compute_attention, remat_attention
from vidformers.attention.fused import attention_kernel, check_backend, chosen_backend, record_backends
from vidformers.attention.kernels import KeyValues, softmax
from vidformers.errors import ConfigError
from vidformers.models.summary import summarise
from vidformers.parallel.mesh import make_mesh, with_mesh
from vidformers.parallel.target import traced_for

BFLOAT16 = jnp.bfloat16


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def hidden(*shape):
    mask = np.random.default_rng(shape).random(shape) < 0.6
    mask[..., 0] = True  # no query without keys
    return mask


# cuDNN


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Computes cuDNN's attention by XLA's function, after a check of the limits of cuDNN. Yields the calls so far."""
    calls, function = [], jax.nn.dot_product_attention

    def checked(q, k, v, bias, mask, *, implementation, **lengths):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0 and k.shape == v.shape and q.shape[0] == k.shape[0]
        for x in (bias, mask):
            assert x is None or x.shape[0] in (1, q.shape[0]) and x.shape[2:] == (q.shape[1], k.shape[1])
        calls.append((bias is not None, mask is not None, lengths["key_value_seq_lengths"] is not None))
        return function(q, k, v, bias, mask, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", checked)
    return calls


DICTIONARY = KeyValues(draw(4, 2, 8), draw(4, 2, 8) + 1)


@pytest.mark.quick
@pytest.mark.parametrize(
    "queries, keys, mask, bias, others, call",
    [
        (6, 8, None, None, [], (False, False, False)),
        (5, 7, None, None, [], (False, False, True)),
        (5, 7, None, None, [DICTIONARY], (False, False, True)),
        (5, 7, hidden(3, 1, 5, 7), None, [DICTIONARY], (False, True, False)),
        (1, 7, hidden(2, 1, 1, 1, 7), None, [], (False, True, False)),
        (7, 7, None, draw(2, 7, 7), [], (True, True, False)),
        (6, 6, hidden(6), draw(2, 6, 6), [DICTIONARY], (True, True, False)),
        (7, 7, hidden(3, 1, 7, 7), draw(2, 7, 7), [DICTIONARY], (True, True, False)),
    ],
    ids=[
        "even",
        "odd",
        "dictionary",
        "mask per group",
        "one query",
        "bias",
        "bias, mask and dictionary",
        "bias and mask per group",
    ],
)
def test_odd_lengths_masks_and_biases_are_padded_for_cudnn(cudnn_calls, queries, keys, mask, bias, others, call):
    q, clip = draw(2, 3, queries, 2, 8), KeyValues(draw(2, 3, keys, 2, 8), draw(2, 3, keys, 2, 8) + 1, None, bias)

    def loss(kernel, q, clip, others):
        out = kernel(q, [clip._replace(mask=mask), *others])
        return (out * draw(*out.shape)).sum(), out

    def cudnn(q, key_values):
        return fused._joined(fused._cudnn, q, [fused._with_axes(item) for item in key_values])

    @quick_jit
    def run(*arguments):
        return [jax.value_and_grad(partial(loss, f), (0, 1, 2), has_aux=True)(*arguments) for f in (softmax, cudnn)]

    expected, found = run(q, clip, others)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    assert cudnn_calls == [call]


# The choice


def arguments(queries, keys, dtype=BFLOAT16, mask=None, bias=None):
    """Returns q and key_values of 2 clips with 3 groups each, 2 heads and a head width of 8, as shapes."""
    shape = partial(jax.ShapeDtypeStruct, dtype=dtype)
    q, k = (shape((2, 3, n, 2, 8)) for n in (queries, keys))
    return q, [KeyValues(k, k, *(None if x is None else shape(x) for x in (mask, bias)))]


LONG = (1569, 1569)


@pytest.mark.quick
@pytest.mark.parametrize(
    "backend, platform, found, made",
    [
        ("auto", "cpu", "einsum", arguments(*LONG)),
        ("auto", "gpu", "cudnn", arguments(197, 197)),
        ("auto", "gpu", "einsum", arguments(197, 197, jnp.float32)),
        ("auto", "gpu", "cudnn", arguments(785, 89)),
        ("auto", "gpu", "einsum", arguments(32, 32)),
        ("auto", "gpu", "einsum", arguments(1, 1568)),
        ("auto", "gpu", "cudnn", arguments(392, 392, bias=(2, 392, 392))),
        ("auto", "gpu", "cudnn", arguments(197, 302, mask=(3, 1, 1, 302))),
        ("auto", "gpu", "cudnn", arguments(392, 392, mask=(3, 1, 392, 392))),
        ("auto", "gpu", "cudnn", arguments(392, 392, mask=(3, 1, 392, 392), bias=(2, 392, 392))),
        ("cudnn", "gpu", "cudnn", arguments(392, 392, mask=(3, 1, 392, 392))),
        ("auto", "tpu", "pallas", arguments(*LONG)),
        ("auto", "tpu", "pallas", arguments(*LONG, mask=(1, 1, 1, 1569))),
        ("auto", "tpu", "einsum", arguments(197, 197)),
        ("auto", "tpu", "einsum", arguments(1, 1568)),
        ("auto", "tpu", "einsum", arguments(*LONG, mask=(1, 1, 1569, 1569))),
        ("pallas", "tpu", "pallas", arguments(9, 9)),
        ("pallas", "tpu", "einsum", arguments(9, 9, bias=(2, 9, 9))),
        ("xla", "tpu", "xla", arguments(9, 9)),
        ("einsum", "tpu", "einsum", arguments(*LONG)),
    ],
)
def test_the_backend_depends_on_device_type_length_and_mask(monkeypatch, backend, platform, found, made):
    monkeypatch.setattr(fused, "device_platform", lambda: platform)
    with traced_for(platform):
        assert chosen_backend(backend, *made) == found


@pytest.mark.quick
def test_a_batch_that_cannot_be_divided_among_devices_stays_with_einsums(monkeypatch):
    mesh = jax.sharding.AbstractMesh((2, 1, 4), ("data", "fsdp", "context"))
    monkeypatch.setattr(sharding, "current_mesh", lambda: mesh)
    for rows, found in ((2, "pallas"), (3, "einsum")):
        q = jnp.zeros((rows, 1, 9, 1, 8))
        with traced_for("tpu"):
            assert chosen_backend("pallas", q, [KeyValues(q, q)]) == found


@pytest.mark.parametrize("groups, queries", [(4, 5), (3, 5), (1, 6)])
def test_masks_and_biases_are_divided_among_devices_like_their_queries(groups, queries):
    """Also gradients of what all devices read: a bias and a dictionary."""
    mesh = make_mesh(data=2, context=2, devices=jax.devices()[:4])
    q, k, v = (draw(2, groups, n, 2, 8) for n in (queries, 7, 7))
    mask, bias = hidden(1, groups, 1, queries, 7), draw(2, queries, 7)

    def loss(kernel, q, k, v, bias, others):
        out = kernel(q, [KeyValues(k, v, mask, bias), *others])
        return (out * draw(*out.shape)).sum(), out

    def run(kernel):
        return jax.value_and_grad(partial(loss, kernel), (0, 1, 2, 3, 4), has_aux=True)

    expected = quick_jit(run(softmax))(q, k, v, bias, [DICTIONARY])
    divided = with_mesh(mesh, run(partial(sharding.on_each_device, softmax)))
    found = jax.jit(divided, in_shardings=NamedSharding(mesh, PartitionSpec()))(q, k, v, bias, [DICTIONARY])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.quick
def test_what_was_chosen_is_recorded_by_numbers_of_queries_and_keys():
    q, k = (jnp.zeros((2, n, 1, 8)) for n in (5, 7))
    with record_backends() as found:
        compute_attention(q, k, k)
        compute_attention(q, k, k, np.ones(7, bool), kernel=attention_kernel("softmax", "xla"))
    compute_attention(q, q, q)
    assert found == {"5x7": "einsum", "5x7, mask": "xla"}


MODELS = ("cvt", "swin", "stat", "vtn:resnet")


@pytest.mark.quick
@pytest.mark.parametrize("backend, platform", [("cudnn", "gpu"), ("pallas", "tpu"), ("einsum", "gpu")])
@pytest.mark.parametrize("name", MODELS)
def test_models_compute_attention_by_the_backend_of_their_config(monkeypatch, cudnn_calls, name, backend, platform):
    monkeypatch.setattr(fused, "device_platform", lambda: platform)
    graph, parameters = make(name, backend=backend, dtype="bfloat16")
    with traced_for(platform), record_backends() as found:
        jax.eval_shape(lambda p, video: nnx.merge(graph, p)(video), parameters, clips(1))
    others = {shape for shape, chosen in found.items() if chosen != backend}
    assert found and {found[shape] for shape in others} <= {"einsum"}
    if backend == "pallas":
        windows = {"2x7, mask"} if name == "vtn:resnet" else set()
        assert others == {shape for shape in found if shape.endswith("bias")} | windows
    else:
        assert not others and bool(cudnn_calls) == (backend == "cudnn")


@pytest.mark.parametrize("name", MODELS)
def test_models_return_the_same_with_xla_as_with_einsums(name):
    logits = [run(parameters, clips(2)) for run, parameters in (compiled(name, backend=b) for b in ("einsum", "xla"))]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


@pytest.mark.quick
def test_dropout_of_attention_weights_stays_with_einsums():
    for rate, key, chosen in ((0.1, True, "einsum"), (0.1, False, "xla"), (0.0, True, "xla")):
        graph, parameters = make("vtn:resnet", backend="xla", temporal_dropout=rate)
        with record_backends() as found:
            arguments = (clips(1), jax.random.key(0)) if key else (clips(1),)
            jax.eval_shape(lambda p, *rest: nnx.merge(graph, p)(*rest), parameters, *arguments)  # noqa: B023
        assert set(found.values()) == {chosen} and all(x.endswith("dropout") == (chosen == "einsum") for x in found)


@pytest.mark.quick
def test_the_masked_form_stays_with_einsums():
    for name in (*MODELS, "joint"):
        graph, parameters = make(name, backend="xla", masked=True)
        with record_backends() as found:
            jax.eval_shape(lambda p, video: nnx.merge(graph, p)(video), parameters, clips(1))  # noqa: B023
        found = {shape: chosen for shape, chosen in found.items() if chosen != "einsum"}
        # The readout of STAT, over the class tokens of its two frames, has no masked form.
        assert found == ({"3x3": "xla"} if name == "stat" else {})


def test_rematerialised_attention_keeps_no_weights_with_any_backend():
    q = jnp.zeros((2, 5, 1, 8))
    for backend in ("auto", "einsum", "xla"):
        with remat_attention():
            _, backward = jax.vjp(partial(compute_attention, kernel=attention_kernel("softmax", backend)), q, q, q)
        assert all(leaf.shape[-2:] != (5, 5) for leaf in jax.tree.leaves(backward))


# Refusals


@pytest.mark.parametrize("backend, device", [("cudnn", "an NVIDIA GPU"), ("pallas", "a TPU")])
def test_a_kernel_of_another_device_is_refused_where_the_model_runs_but_not_where_it_is_counted(backend, device):
    graph, parameters = make("joint", backend=backend, dtype="bfloat16")
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(lambda p, video: nnx.merge(graph, p)(video), parameters, clips(1))
    assert str(error.value) == f"model.backend={backend} needs {device}, but JAX runs on cpu. Set model.backend=auto."
    options = dict(dtype="bfloat16")
    assert summarise(maker("joint", backend=backend, **options)) == summarise(maker("joint", **options))


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("cudnn", "softmax", jnp.float32, 64), "model.backend=cudnn does not support model.dtype=float32"),
        (("cudnn", "softmax", BFLOAT16, 60), "model.width / model.heads=60"),
        (("pallas", "softmax", jnp.float64, 64), "model.backend=pallas does not support model.dtype=float64"),
        (("pallas", "relu", jnp.float32, 64), "model.backend=pallas computes softmax, not model.kernel=relu"),
    ],
)
def test_an_impossible_backend_raises_an_error(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_backend(*arguments)
