"""Every registered attention scheme against its expected keys and its masked form.

A new scheme is tested by registering it. No test names a scheme, and none calls `fold` or `unfold`. Two schemes of
tests/schemes.py need what no registered scheme needs, and take a part of the tests.
"""

import dataclasses
import importlib
import pkgutil
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxprs import constants
from schemes import EXAMPLES, SCHEMES, required_options
from sublayers import (
    HEADS,
    WIDTH,
    assert_gathered_equals_masked,
    branch,
    draw_tokens,
    influence,
    layer,
    module,
    output_and_gradients,
    run,
)
from tiny import quick_jit

import vidformers
from vidformers.attention import groups as grouping
from vidformers.attention.core import SelfAttention
from vidformers.attention.groups import group_numbers, groups_per_tile
from vidformers.attention.registry import NOT_PARTITIONS, SchemeEntry
from vidformers.attention.scheme import Position, Scheme, position
from vidformers.layers.mlp import Mlp
from vidformers.layers.tokens import Tokens
from vidformers.models.encoder import Block
from vidformers.parallel.mesh import BATCH_AXES, make_mesh, with_mesh
from vidformers.parallel.target import traced_for

ROOT = Path(vidformers.__file__).parents[1]
ENTRIES = list(SCHEMES.values())
EVERY = [*ENTRIES, *EXAMPLES]
each = partial(pytest.mark.parametrize, "entry", ids=lambda entry: entry.name)
every_scheme = each(ENTRIES)
CASES = [pytest.param(e, kind, id=f"{e.name}-{kind}") for e in EVERY for kind in e.class_tokens]
WITH_CLASS_TOKENS = [case for case in CASES if case.values[1] != "none"]


def count_class_tokens(entry: SchemeEntry, class_tokens: str) -> int:
    return {"none": 0, "clip": 1, "frame": entry.grid[0]}[class_tokens]


def draw(entry: SchemeEntry, class_tokens: str, clips: int = 1):
    return draw_tokens(entry.grid, count_class_tokens(entry, class_tokens), clips)


def sublayer(entry: SchemeEntry, **options):
    scheme = entry.make()
    return layer(scheme, **required_options(scheme) | options)


# The masked form


def check_gathered_equals_masked(entry: SchemeEntry, class_tokens: str, **options) -> None:
    def make(masked):
        return sublayer(entry, masked=masked, dtype=jnp.float64, **options)

    assert_gathered_equals_masked(make, draw(entry, class_tokens, clips=2))


@pytest.mark.quick
@pytest.mark.parametrize("entry, class_tokens", CASES)
def test_gathered_equals_masked_with_its_gradient(float64, entry, class_tokens):
    check_gathered_equals_masked(entry, class_tokens)


@pytest.mark.parametrize("entry, class_tokens", WITH_CLASS_TOKENS)
def test_gathered_equals_masked_with_a_dictionary_when_class_tokens_do_not_query(float64, entry, class_tokens):
    check_gathered_equals_masked(entry, class_tokens, external=3, class_queries=False)


@each([e for e in ENTRIES if e.make().whole])
def test_gathered_equals_masked_with_relu(float64, entry):
    check_gathered_equals_masked(entry, entry.class_tokens[-1], external=3, kernel="relu")


@each([e for e in ENTRIES if e.make().ordered and e.make().whole])
@pytest.mark.parametrize("cosine_index", ["sequence", "t"])
def test_gathered_equals_masked_with_cosine(float64, entry, cosine_index):
    options = dict(kernel="cosine", cosine_index=cosine_index, class_keys=False, class_queries=False)
    check_gathered_equals_masked(entry, entry.class_tokens[0], external=3, **options)


@each([e for e in ENTRIES if "none" in e.class_tokens])
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


@pytest.mark.parametrize(
    "entry, class_tokens", WITH_CLASS_TOKENS + [case for case in CASES if case.values[0].class_tokens == ("none",)]
)
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
@each(EVERY)
def test_visible_equals_the_keys(entry):
    check_visible_equals_keys(entry)


@cache
def gathered_pairs(scheme: Scheme, grid):
    """Returns (g q k), whether a pair of a query and a key that a group gathers exists, and whether it is visible."""

    @quick_jit
    def pairs():
        query = group_numbers(scheme, grid)
        key = scheme.neighbourhood(query, grid)
        query, key = query[..., None], key[:, :, None]
        return (query > 0) & (key > 0), scheme.visible(position(query, grid), position(key, grid))

    return np.broadcast_arrays(*pairs())


def check_whole(entry: SchemeEntry) -> None:
    exists, visible = gathered_pairs(entry.make(), entry.grid)
    assert entry.make().whole == (visible[exists].all() and not entry.make().reads_neighbours)


@pytest.mark.quick
@each(EVERY)
def test_a_scheme_is_whole_exactly_if_it_is_a_partition(entry, monkeypatch):
    check_whole(entry)
    monkeypatch.setattr(type(entry.make()), "whole", not entry.make().whole)
    with pytest.raises(AssertionError):
        check_whole(entry)


def check_constants(function, *arguments) -> None:
    assert max((np.asarray(x).nbytes for x in constants(jax.make_jaxpr(function)(*arguments))), default=0) < 2**20


@each(EVERY)
def test_no_mask_is_a_constant(entry):
    """Traces a sublayer for clips of 96 frames of 448 pixels."""
    grid, count = (96, 28, 28), {"none": 0, "clip": 1, "frame": 96}[entry.class_tokens[-1]]
    shapes = [jax.ShapeDtypeStruct((1, *shape, WIDTH), jnp.float32) for shape in ((96, 28 * 28), (count,))]
    for masked in (False, True):
        graph, parameters = sublayer(entry, masked=masked)
        check_constants(partial(branch, graph), parameters, Tokens(*shapes, grid))


@pytest.mark.quick
def test_a_mask_that_is_a_constant_is_found():
    mask = np.ones((1100, 1100), bool)
    with pytest.raises(AssertionError):
        check_constants(jax.jit(lambda x: jnp.where(mask, x, 0)), 1.0)


@each([e for e in EVERY if e.make().causal])
def test_two_layers_of_a_causal_scheme_read_no_later_frame(entry):
    def make():
        options = required_options(entry.make())
        attentions = [SelfAttention(entry.make(), WIDTH, HEADS, rngs=nnx.Rngs(0), **options) for _ in range(2)]
        return Block([x for attention in attentions for x in (attention, Mlp(WIDTH, WIDTH, rngs=nnx.Rngs(0)))])

    graph, parameters = module(make)
    tokens = jax.tree.map(np.float32, draw_tokens(entry.grid, 1))

    def outputs(patches):
        return nnx.merge(graph, parameters)(tokens.replace(patches=patches)).patches[0].sum((1, 2))

    reads = np.any(quick_jit(jax.jacrev(outputs))(tokens.patches)[:, 0], axis=(2, 3))  # (frame, frame)
    later = np.triu(np.ones_like(reads), 1)
    assert not reads[later].any() and reads[later.T].any()


# Devices


def forms_on_one_device(entry: SchemeEntry):
    """Returns f(parameters, tokens) -> output and gradients, the parameters and the tokens."""
    graph, parameters = sublayer(entry, dtype=jnp.float64)
    return partial(output_and_gradients, graph), parameters, draw(entry, entry.class_tokens[-1], clips=4)


@cache
def on_one_device(entry: SchemeEntry):
    function, *arguments = forms_on_one_device(entry)
    return quick_jit(function)(*arguments)


@each(EVERY)
def test_one_device_equals_eight(float64, entry):
    function, parameters, tokens = forms_on_one_device(entry)
    class_spec = P(BATCH_AXES, "context" if entry.class_tokens[-1] == "frame" else None)
    specs = Tokens(P(BATCH_AXES, "context"), class_spec, tokens.grid)
    for context in (4,) if entry in EXAMPLES else (2, 4):
        mesh = make_mesh(context=context)
        sharded = jax.device_put(tokens, jax.tree.map(partial(NamedSharding, mesh), specs))
        eight = quick_jit(with_mesh(mesh, function))(parameters, sharded)
        assert len(eight[0].patches.devices()) == 8
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), on_one_device(entry), eight)


@each(EVERY)
def test_groups_that_share_a_tile_equal_groups_apart(float64, entry, monkeypatch):
    """On two devices a tile may hold groups of two clips. With frames sharded, it holds groups of one clip."""
    function, parameters, tokens = forms_on_one_device(entry)
    expected, counts = on_one_device(entry), []
    monkeypatch.setattr(
        grouping, "groups_per_tile", lambda groups: counts.append(groups_per_tile(groups)) or counts[-1]
    )
    has_padding = not gathered_pairs(entry.make(), entry.grid)[0].all()  # or zeros in place of a neighbour
    for context in (1, 2) if entry in ENTRIES and entry.make().group_extent == "time" and not has_padding else (1,):
        mesh = make_mesh(data=2, context=context, devices=jax.devices()[: 2 * context])
        with traced_for("tpu"):
            tiled = quick_jit(with_mesh(mesh, function))(parameters, tokens)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), expected, tiled)
    assert has_padding or not entry.make().ordered or min(counts) > 1


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


@each(ENTRIES[:1])
def test_a_wrong_visible_makes_masked_differ_from_gathered(float64, entry, wrong_visible):
    with pytest.raises(AssertionError):
        check_gathered_equals_masked(entry, entry.class_tokens[0])


@every_scheme
def test_wrong_keys_differ_from_visible(entry):
    with pytest.raises(AssertionError):
        check_visible_equals_keys(with_wrong_keys(entry))


@each(ENTRIES[:1])
def test_wrong_keys_differ_from_the_jacobian(entry):
    with pytest.raises(AssertionError):
        check_jacobian_equals_keys(with_wrong_keys(entry), entry.class_tokens[0])


# The registry


def subclasses(kind) -> set:
    return {kind} | {below for subclass in kind.__subclasses__() for below in subclasses(subclass)}


def product_subclasses(kind) -> set:
    """Returns the subclasses of `kind` that the library itself defines."""
    for info in pkgutil.walk_packages(vidformers.__path__, "vidformers."):
        if info.name.startswith(("vidformers.attention.", "vidformers.models.", "vidformers.layers.")):
            importlib.import_module(info.name)
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
