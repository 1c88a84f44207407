"""The update of each layer within the backward pass, so that the gradient of a whole model never exists.

Known from LOMO (arXiv 2306.09782) and from optimiser steps fused into the backward pass elsewhere. An update that needs
the whole gradient at once, as clipping by its norm does, or that of several micro-batches, cannot be made so.
"""

from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

REST = ()  # the key of what is not a stage's stacked layers


def split_stages(parameters: dict) -> dict:
    """Parameters by the path of each stage of more than one layer, and `REST`."""
    parts = defaultdict(dict)
    for path, leaf in flatten_dict(parameters).items():
        cut = path.index("layers") + 1 if "layers" in path and len(leaf) > 1 else 0
        parts[path[:cut]][path[cut:]] = leaf
    return {path: unflatten_dict(part) for path, part in parts.items()}


def merge_stages(parts: dict) -> dict:
    """The inverse of `divide`."""
    return unflatten_dict(
        {(*path, *inner): leaf for path, part in parts.items() for inner, leaf in flatten_dict(part).items()}
    )


def _map_parameters(function, *states):
    """`function` of the trees of parameters, which are the dicts, in an optimiser's state; of all else the first."""
    return jax.tree.map(
        lambda *nodes: function(*nodes) if isinstance(nodes[0], dict) else nodes[0],
        *states,
        is_leaf=lambda node: isinstance(node, dict),
    )


def value_and_update(loss, graph, optimizer, parameters, opt_state):
    """(loss, correct, norm of the gradient, new parameters, new opt_state).

    Args:
        loss: model -> (loss, correct).
        graph: of the model, whose stages of more than one layer are updated within the backward pass, all else after.
        opt_state: the state of `optimizer`, an optax transformation that treats each parameter apart.

    Where a gradient is not finite, its layer and all of the stage before it stay as they were.
    """
    parameters = split_stages(parameters)
    opt_state = {path: _map_parameters(lambda tree: split_stages(tree)[path], opt_state) for path in parameters}
    rest = opt_state.pop(REST)

    def through(parameters, opt_state, squares):
        model = nnx.merge(graph, merge_stages(parameters))
        for path, module in nnx.iter_modules(model):
            if (path := (*path, "layers")) in opt_state:
                module.layer_loop = partial(_through, optimizer, opt_state[path], squares[path])
        return loss(model)

    value, pull, correct = jax.vjp(
        through, parameters, opt_state, dict.fromkeys(opt_state, jnp.zeros(())), has_aux=True
    )
    gradient, updated, squares = pull(jnp.ones(()))
    updated = jax.tree.map(lambda new, old: old if new.dtype == jax.dtypes.float0 else new, updated, opt_state)
    norm = jnp.sqrt(sum(squares.values()) + optax.tree.norm(gradient[REST], squared=True))
    updates, updated[REST] = optimizer.update(gradient[REST], rest, parameters[REST])
    gradient[REST] = optax.apply_updates(parameters[REST], updates)
    paths = [REST, *opt_state]
    updated = _map_parameters(
        lambda *trees: merge_stages(dict(zip(paths, trees, strict=True))), *(updated[path] for path in paths)
    )
    return value, correct, norm, merge_stages(gradient), updated


def _through(optimizer, opt_state, squares, run, parameters, tokens, noise):
    """A stage's way through its layers, whose gradients are its new state: of `parameters` what they become, of
    `opt_state` likewise, and of the scalar `squares` the sum of squares of the true gradient."""
    return _walk(run, optimizer, nnx.to_pure_dict(parameters), opt_state, squares, tokens, noise)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _walk(run, optimizer, parameters, opt_state, squares, tokens, noise):
    return jax.lax.scan(run, tokens, (parameters, noise))[0]


def _forward(run, optimizer, parameters, opt_state, squares, tokens, noise):
    tokens, inputs = jax.lax.scan(lambda tokens, layer: (run(tokens, layer)[0], tokens), tokens, (parameters, noise))
    return tokens, (parameters, opt_state, squares, inputs, noise)


def _backward(run, optimizer, kept, cotangent):
    parameters, opt_state, squares, inputs, noise = kept
    depth = len(jax.tree.leaves(parameters)[0])

    def layer(step, carry):
        cotangent, parameters, opt_state, squares = carry
        i = depth - 1 - step
        own, own_opt_state, own_noise, own_inputs = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False) if x.ndim else x,
            (parameters, opt_state, noise, inputs),
        )
        _, pull = jax.vjp(lambda own, tokens: run(tokens, (own, own_noise))[0], own, own_inputs)
        gradient, cotangent = pull(cotangent)
        squares += optax.tree.norm(gradient, squared=True)
        updates, own_opt_state = optimizer.update(gradient, own_opt_state, own)
        new = optax.apply_updates(own, updates), own_opt_state

        def write(stacks):
            return jax.tree.map(
                lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0) if x.ndim else x, stacks, new
            )

        # In a branch of its own all writing comes after all reading, so that XLA writes into the stacks which the loop
        # carries; without it, it copies them. What decides must come of all reading, and of nothing that it can guess.
        known = squares + sum(x.ravel()[0] for x in jax.tree.leaves(cotangent) if _real(x) and x.size)
        parameters, opt_state = jax.lax.cond(jnp.isfinite(known), write, lambda stacks: stacks, (parameters, opt_state))
        return cotangent, parameters, opt_state, squares

    cotangent, parameters, opt_state, squares = jax.lax.fori_loop(
        0, depth, layer, (cotangent, parameters, opt_state, squares)
    )
    return parameters, jax.tree.map(_differential, opt_state), squares, cotangent, None


def _real(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _differential(x):
    """What stands for `x` among gradients, where integers have none."""
    return x if _real(x) else np.zeros(x.shape, jax.dtypes.float0)


_walk.defvjp(_forward, _backward)
