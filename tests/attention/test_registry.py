"""Every registered attention scheme against its expected keys and its masked form.

A new scheme is tested by registering it. No test names a scheme, and none calls `fold` or `unfold`.
"""

import dataclasses
import importlib
import pkgutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from schemes import SCHEMES
from sublayers import (
    HEADS,
    WIDTH,
    assert_gathered_equals_masked,
    branch,
    draw_tokens,
    influence,
    layer,
    output_and_gradients,
    run,
)
from tiny import quick_jit

import vidformers
from vidformers.attention.core import SelfAttention
from vidformers.attention.registry import NOT_PARTITIONS, SchemeEntry, register
from vidformers.attention.scheme import Position, Scheme
from vidformers.layers.tokens import Tokens
from vidformers.parallel.mesh import BATCH_AXES, make_mesh, with_mesh

ROOT = Path(vidformers.__file__).parents[1]
ENTRIES = list(SCHEMES.values())
every_scheme = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
every_scheme_and_class_tokens = pytest.mark.parametrize(
    "entry, class_tokens",
    [pytest.param(e, kind, id=f"{e.name}-{kind}") for e in ENTRIES for kind in e.class_tokens],
)


def count_class_tokens(entry: SchemeEntry, class_tokens: str) -> int:
    return {"none": 0, "clip": 1, "frame": entry.grid[0]}[class_tokens]


def draw(entry: SchemeEntry, class_tokens: str, clips: int = 1):
    return draw_tokens(entry.grid, count_class_tokens(entry, class_tokens), clips)


def sublayer(entry: SchemeEntry, **options):
    return layer(entry.make(), **options)


# The masked form


def check_gathered_equals_masked(entry: SchemeEntry, class_tokens: str, **options) -> None:
    def make(masked):
        return sublayer(entry, masked=masked, dtype=jnp.float64, **options)

    assert_gathered_equals_masked(make, draw(entry, class_tokens, clips=2))


@pytest.mark.quick
@every_scheme_and_class_tokens
def test_gathered_equals_masked_with_its_gradient(float64, entry, class_tokens):
    check_gathered_equals_masked(entry, class_tokens)


@pytest.mark.parametrize(
    "entry, class_tokens", [case for case in every_scheme_and_class_tokens.args[1] if case.values[1] != "none"]
)
def test_gathered_equals_masked_with_a_dictionary_when_class_tokens_do_not_query(float64, entry, class_tokens):
    check_gathered_equals_masked(entry, class_tokens, external=3, class_queries=False)


@every_scheme
def test_gathered_equals_masked_with_relu(float64, entry):
    check_gathered_equals_masked(entry, entry.class_tokens[-1], external=3, kernel="relu")


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.make().ordered], ids=lambda entry: entry.name)
@pytest.mark.parametrize("cosine_index", ["sequence", "t"])
def test_gathered_equals_masked_with_cosine(float64, entry, cosine_index):
    options = dict(kernel="cosine", cosine_index=cosine_index, class_keys=False, class_queries=False)
    check_gathered_equals_masked(entry, entry.class_tokens[0], external=3, **options)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "none" in e.class_tokens], ids=lambda entry: entry.name)
def test_class_tokens_that_are_not_keys_change_nothing(entry):
    graph, parameters = sublayer(entry, class_keys=False, class_queries=False)
    patches, class_tokens = run(graph, parameters, draw(entry, entry.class_tokens[-1]))
    np.testing.assert_array_equal(patches, run(*sublayer(entry), draw(entry, "none"))[0])
    assert class_tokens is None


# Backends


@every_scheme
@pytest.mark.parametrize("hybrid", ["combined", "multi_view"])
def test_the_xla_backend_equals_einsum(entry, hybrid):
    options = dict(external=3, hybrid=hybrid)
    tokens = jax.tree.map(np.float32, draw(entry, entry.class_tokens[-1], clips=2))
    graphs = [sublayer(entry, backend=backend, **options)[0] for backend in ("einsum", "xla")]
    parameters = sublayer(entry, **options)[1]
    einsum, xla = quick_jit(lambda tokens: [branch(graph, parameters, tokens) for graph in graphs])(tokens)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), xla, einsum)


# The expected keys


def expected_keys(entry: SchemeEntry):
    """Returns (n n), whether query patch i reads patch j by the entry's keys."""
    read = np.zeros((*entry.grid, *entry.grid), bool)
    for place in np.ndindex(entry.grid):
        for key in entry.expected_keys(entry.grid, *place):
            read[(*place, *key)] = True
    n = int(np.prod(entry.grid))
    return read.reshape(n, n)


def check_jacobian_equals_keys(entry: SchemeEntry, class_tokens: str, external: int = 0) -> None:
    """Compares the non-zero pattern of the Jacobian of the gathered form with the keys.

    The projection of queries is zeroed, so that the Jacobian passes through keys and values alone. A class token of a
    clip reads every patch and every patch reads it. A class token of a frame reads what the patches of its frame read,
    and is read where they are.
    """
    graph, parameters = sublayer(entry, external=external)
    kernel = parameters["qkv"]["kernel"] * (np.arange(3 * WIDTH) >= WIDTH)
    parameters = parameters | {"qkv": parameters["qkv"] | {"kernel": kernel.astype(np.float32)}}
    patches, class_reads = influence(graph, parameters, draw(entry, class_tokens))
    keys = expected_keys(entry)
    np.testing.assert_array_equal(patches[0].reshape(keys.shape), keys)
    if class_tokens == "none":
        return
    count = count_class_tokens(entry, class_tokens)
    by_owner = keys.reshape(count, -1, count, keys.shape[0] // count)  # query owner, query, key owner, key
    np.testing.assert_array_equal(patches[1].reshape(*by_owner.shape[:2], count), by_owner.any(3))
    np.testing.assert_array_equal(class_reads[0].reshape(count, count, -1), by_owner.any(1))
    np.testing.assert_array_equal(class_reads[1].reshape(count, count), by_owner.any((1, 3)))


@every_scheme_and_class_tokens
def test_the_jacobian_of_the_gathered_form_is_non_zero_exactly_at_the_keys(entry, class_tokens):
    """The last kind of class tokens runs with a dictionary, which must add no patch to the keys."""
    check_jacobian_equals_keys(entry, class_tokens, external=3 if class_tokens == entry.class_tokens[-1] else 0)


def check_visible_equals_keys(entry: SchemeEntry) -> None:
    """Compares the visibility matrix with the keys, without a model.

    A scheme may move the content of heads before attention, in groups that are frames. The patches compared are
    therefore those whose key or value, after `shift_in_time`, lies in any head at a place that is visible to the query.
    """
    scheme, grid = entry.make(), entry.grid
    n = int(np.prod(grid))
    number = jnp.broadcast_to(1 + jnp.arange(n).reshape(1, grid[0], -1, 1, 1), (1, grid[0], n // grid[0], HEADS, 1))
    class_rows = 1 if "frame" in entry.class_tokens else 0
    number = jnp.pad(number, ((0, 0), (0, 0), (0, class_rows), (0, 0), (0, 0)))  # 0: a class token
    k, v = (scheme.shift_in_time(number, letter, class_rows)[:, :, : n // grid[0]] for letter in "KV")
    content = np.concatenate([np.asarray(x).reshape(n, HEADS) for x in (k, v)], axis=1)
    place = Position(*(axis.ravel() for axis in np.indices(grid)))
    visible = scheme.visible(Position(*(x[:, None] for x in place)), Position(*(x[None] for x in place)))
    holds = (content[:, :, None] == 1 + np.arange(n)).any(1)  # (place, patch)
    np.testing.assert_array_equal(visible @ holds, expected_keys(entry))


@pytest.mark.quick
@every_scheme
def test_visible_equals_the_keys(entry):
    check_visible_equals_keys(entry)


# The device mesh


@every_scheme
def test_one_device_equals_eight(float64, entry):
    class_tokens = entry.class_tokens[-1]
    graph, parameters = sublayer(entry, dtype=jnp.float64)
    tokens, function = draw(entry, class_tokens, clips=4), partial(output_and_gradients, graph)
    one = quick_jit(function)(parameters, tokens)
    class_spec = P(BATCH_AXES, "context" if class_tokens == "frame" else None)
    specs = Tokens(P(BATCH_AXES, "context"), class_spec, tokens.grid)
    for context in (2, 4):
        mesh = make_mesh(context=context)
        sharded = jax.device_put(tokens, jax.tree.map(partial(NamedSharding, mesh), specs))
        eight = quick_jit(with_mesh(mesh, function))(parameters, sharded)
        assert len(eight[0].patches.devices()) == 8
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), one, eight)


# The checks themselves


@pytest.fixture
def wrong_visible(monkeypatch, entry):
    """Inverts whether the patch (0, 0, 0) sees itself, or the first of its keys."""
    kind = type(entry.make())
    visible, key = kind.visible, next(iter(entry.expected_keys(entry.grid, 0, 0, 0)))

    def inverted(self, query, patch):
        at_query = (query.t == 0) & (query.y == 0) & (query.x == 0)
        at_key = (patch.t == key[0]) & (patch.y == key[1]) & (patch.x == key[2])
        return visible(self, query, patch) ^ (at_query & at_key)

    monkeypatch.setattr(kind, "visible", inverted)


def with_wrong_keys(entry: SchemeEntry) -> SchemeEntry:
    """Returns the entry without the last key of the patch (0, 0, 0)."""

    def keys(grid, *place):
        right = list(entry.expected_keys(grid, *place))
        return right[:-1] if place == (0, 0, 0) else right

    return dataclasses.replace(entry, expected_keys=keys)


@every_scheme
def test_a_wrong_visible_differs_from_the_keys(entry, wrong_visible):
    with pytest.raises(AssertionError):
        check_visible_equals_keys(entry)


@pytest.mark.parametrize("entry", ENTRIES[:1], ids=lambda entry: entry.name)
def test_a_wrong_visible_makes_masked_differ_from_gathered(float64, entry, wrong_visible):
    with pytest.raises(AssertionError):
        check_gathered_equals_masked(entry, entry.class_tokens[0])


@every_scheme
def test_wrong_keys_differ_from_visible(entry):
    with pytest.raises(AssertionError):
        check_visible_equals_keys(with_wrong_keys(entry))


@pytest.mark.parametrize("entry", ENTRIES[:1], ids=lambda entry: entry.name)
def test_wrong_keys_differ_from_the_jacobian(entry):
    with pytest.raises(AssertionError):
        check_jacobian_equals_keys(with_wrong_keys(entry), entry.class_tokens[0])


# The registry


def subclasses(kind) -> set:
    return {kind} | {below for subclass in kind.__subclasses__() for below in subclasses(subclass)}


def product_subclasses(kind) -> set:
    """Returns the subclasses of `kind` that the library itself defines."""
    for module in pkgutil.walk_packages(vidformers.__path__, "vidformers."):
        if module.name.startswith(("vidformers.attention.", "vidformers.models.", "vidformers.layers.")):
            importlib.import_module(module.name)
    return {below for below in subclasses(kind) if below.__module__.startswith("vidformers.")} - {kind}


@pytest.mark.quick
def test_every_scheme_is_registered():
    assert {type(entry.make()) for entry in ENTRIES} == product_subclasses(Scheme)


@pytest.mark.quick
def test_every_other_attention_names_the_test_that_holds_it():
    """An attention is a sublayer with the methods `branch` and `attend`."""
    attentions = {
        kind for kind in product_subclasses(nnx.Module) if hasattr(kind, "branch") and hasattr(kind, "attend")
    }
    assert {kind.__name__ for kind in attentions - {SelfAttention}} == set(NOT_PARTITIONS)
    for name, sentence in NOT_PARTITIONS.items():
        path, reason = sentence.split(": ")
        assert name in (ROOT / path).read_text() and reason.endswith(".")


@pytest.mark.quick
def test_a_name_is_registered_once():
    entry = ENTRIES[0]
    with pytest.raises(ValueError, match="registered twice"):
        register(entry.name, entry.make, grid=entry.grid, expected_keys=entry.expected_keys)
