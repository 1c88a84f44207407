"""One attention sublayer with random parameters, run without a model."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny import quick_jit, randomise

from vidformers.attention.core import SelfAttention
from vidformers.attention.dictionary import Dictionary
from vidformers.layers.tokens import Tokens, tokens_of_maps

WIDTH, HEADS = 32, 4


def module(make):
    """Returns (graph, parameters) of a sublayer. The random parameters depend on their paths and shapes alone."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, randomise(nnx.to_pure_dict(state))


def count_parameters(make) -> int:
    """Returns the number of parameters of a module, without computing any."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))


def attention(kind, *arguments, external: int = 0, hybrid: str = "combined", **options):
    """Returns (graph, parameters) of an attention of class `kind`; `external` is the size of its dictionary."""

    def make():
        rngs = nnx.Rngs(0)
        dictionary = Dictionary(external, WIDTH, HEADS, hybrid=hybrid, rngs=rngs) if external else None
        return kind(*arguments, dictionary=dictionary, rngs=rngs, **options)

    return module(make)


@cache
def layer(scheme, **options):
    """Returns (graph, parameters) of a `SelfAttention`."""
    return attention(SelfAttention, scheme, WIDTH, HEADS, **options)


def draw_tokens(grid, class_tokens: int, clips: int = 1, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    return tokens_of_maps(rng.normal(size=(clips, *grid, WIDTH)), rng.normal(size=(clips, class_tokens, WIDTH)))


def branch(graph, parameters, tokens):
    return nnx.merge(graph, parameters).branch(tokens)


run = quick_jit(branch, static_argnums=0)


def output_and_gradients(graph, parameters, tokens, call=lambda sublayer, tokens: sublayer(tokens)):
    """Returns the tokens after the sublayer, and the gradients for parameters and tokens, in float64.

    The cotangent of the output is random.
    """

    def loss(parameters, tokens):
        out = call(nnx.merge(graph, parameters), tokens)
        rng = np.random.default_rng(1)
        return sum((leaf * rng.normal(size=leaf.shape)).sum() for leaf in jax.tree.leaves(out)), out

    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), parameters)
    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, tokens)
    return out, gradients


def assert_gathered_equals_masked(make, tokens, **options) -> None:
    """Checks outputs and gradients in float64. `make(masked)` returns the (graph, parameters) of either form."""
    forms = [make(masked) for masked in (False, True)]
    gathered, masked = quick_jit(lambda tokens: [output_and_gradients(*form, tokens, **options) for form in forms])(
        tokens
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gathered)} == {np.dtype("float64")}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), gathered, masked)


def influence(graph, parameters, tokens):
    """Returns which input tokens each output token depends on: ((patches, class tokens), (patches, class tokens)).

    A random mixture of the channels of an output is differentiated: it vanishes only where all channels do.
    """
    mixture = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)

    def outputs(tokens):
        updates = branch(graph, parameters, tokens)
        return tuple(None if update is None else update[0] @ mixture for update in updates)

    jacobians = quick_jit(jax.jacrev(outputs))(jax.tree.map(np.float32, tokens))
    # As NumPy arrays: eager operations on JAX arrays compile for every shape.
    return [
        None if update is None else [np.asarray(j).any(-1) for j in (update.patches, update.class_tokens)]
        for update in jacobians
    ]
