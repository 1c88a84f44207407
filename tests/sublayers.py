"""One attention sublayer with random parameters, run apart from a model."""

from functools import cache

import jax
import numpy as np
from flax import nnx
from tiny import quick_jit, randomise

from vidformers.attention.core import SelfAttention
from vidformers.attention.dictionary import Dictionary
from vidformers.layers.tokens import Tokens

WIDTH, HEADS = 32, 4


def module(make):
    """A sublayer with random parameters, the same ones whatever the options."""
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, randomise(nnx.to_pure_dict(state))


def attention(kind, *arguments, external: int = 0, hybrid: str = "combined", **options):
    """(graph, parameters) of an attention sublayer of that class; `external` is the size of its dictionary."""

    def make():
        rngs = nnx.Rngs(0)
        entries = Dictionary(external, WIDTH, HEADS, hybrid=hybrid, rngs=rngs) if external else None
        return kind(*arguments, dictionary=entries, rngs=rngs, **options)

    return module(make)


@cache
def layer(scheme, **options):
    """`attention` of the class SelfAttention."""
    return attention(SelfAttention, scheme, WIDTH, HEADS, **options)


def draw_tokens(grid, classes: int, clips: int = 1, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens(rng.normal(size=(clips, *grid, WIDTH)), rng.normal(size=(clips, classes, WIDTH)))


def branch(graph, parameters, tokens):
    return nnx.merge(graph, parameters).branch(tokens)


run = quick_jit(branch, static_argnums=0)


def influence(graph, parameters, tokens):
    """For each output token, which input tokens it depends on: ((patches, classes), (patches, classes)).

    A random mixture of the channels of an output is differentiated: it vanishes only where all of them do.
    """
    mixture = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)

    def outputs(tokens):
        parts = branch(graph, parameters, tokens)
        return tuple(None if part is None else part[0] @ mixture for part in parts)

    jacobians = quick_jit(jax.jacrev(outputs))(jax.tree.map(np.float32, tokens))
    return [None if part is None else [np.any(j, axis=-1) for j in part] for part in jacobians]
