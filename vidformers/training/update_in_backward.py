"""Updates the layers in the backward pass, so that the gradient of the whole model is never materialised.

Each stage of stacked layers is run by a scan with a custom_vjp. The "cotangents" that this custom_vjp returns are not
gradients: they are the updated parameters, the updated optimizer state, and the squared norm of the true gradient. The
backward rule iterates over the layers from last to first. It computes the gradient of one layer, applies the optimizer
to this layer, and overwrites its old values. Only the gradient of one layer is materialised at a time.

Reason: `jax.grad` returns the gradients of all layers together, and its scan stacks them, which takes as much memory as
the parameters. A custom_vjp is the only place where JAX passes a layer's cotangent to our code inside the backward
pass. Two tests in tests/training/test_update_in_backward.py check this.
`test_the_stacks_are_written_in_place_and_the_gradient_is_never_materialised` compiles a step and asserts that its
temporary memory is smaller than the parameters. `test_it_is_the_same_step` asserts that the results equal those of the
ordinary step.

The method is that of LOMO (arXiv 2306.09782) and of optimizer steps fused into the backward pass in other libraries. It
excludes updates that need the whole gradient at once, such as clipping by its norm, and the sum over several
micro-batches.
"""

from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

REST = ()  # the empty path: the key of all parameters outside the stacked layers of a stage


def split_stages(parameters: dict) -> dict:
    """Returns {path of the stage: its stacked parameters}, for every stage with at least two layers.

    All other parameters are under `REST`. A stage of one layer is among them, since its tokens may change their shape,
    which a scan does not allow.
    """
    stages = defaultdict(dict)
    for path, leaf in flatten_dict(parameters).items():
        prefix_length = path.index("layers") + 1 if "layers" in path and len(leaf) > 1 else 0
        stages[path[:prefix_length]][path[prefix_length:]] = leaf  # path[:0] is REST
    return {path: unflatten_dict(stage) for path, stage in stages.items()}


def merge_stages(stages: dict) -> dict:
    """Returns the parameters from which `split_stages` made `stages`."""
    return unflatten_dict(
        {(*path, *inner): leaf for path, stage in stages.items() for inner, leaf in flatten_dict(stage).items()}
    )


def _map_parameter_trees(function, *states):
    """Applies `function` to each parameter tree (a dict) in the optimizer states.

    Takes all other leaves, such as step counts, from the first state. Assumes that every dict in an optimizer state has
    the structure of the parameters.
    """
    return jax.tree.map(
        lambda *nodes: function(*nodes) if isinstance(nodes[0], dict) else nodes[0],
        *states,
        is_leaf=lambda node: isinstance(node, dict),
    )


def value_and_update(loss_fn, graph, optimizer, parameters, opt_state, scales=None):
    """Returns (loss, accuracy, gradient norm, new parameters, new opt_state).

    Stages of more than one layer are updated in the backward pass, all other parameters after it. If a gradient is not
    finite, its layer and all earlier layers of the stage keep their values, so the new state is only partly updated.
    This state is never saved, since the training loop stops the run when the gradient norm is not finite.

    Args:
        loss_fn: model -> (loss, accuracy).
        graph: the graph definition of the model.
        optimizer: an optax transformation that treats each parameter separately.
        parameters, opt_state: the values before the update.
        scales: factors of the updates, see `layer_decay.learning_rate_scales`, or None.
    """
    parameters, scales = split_stages(parameters), {} if scales is None else split_stages(scales)
    opt_state = {
        path: _map_parameter_trees(lambda tree, path=path: split_stages(tree)[path], opt_state) for path in parameters
    }
    rest_opt_state = opt_state.pop(REST)

    def loss_of_stages(parameters, opt_state, squared_norms):
        model = nnx.merge(graph, merge_stages(parameters))
        for path, module in nnx.iter_modules(model):
            if (path := (*path, "layers")) in opt_state:
                # Replaces the loop of `Stage.__call__`, in this temporary copy of the model only.
                layer_scales = _of_layers(scales[path]) if path in scales else None
                module.run_layers = partial(_run_layers, optimizer, layer_scales, opt_state[path], squared_norms[path])
        return loss_fn(model)

    zeros = dict.fromkeys(opt_state, jnp.zeros(()))
    loss, pullback, accuracy = jax.vjp(loss_of_stages, parameters, opt_state, zeros, has_aux=True)
    # These "cotangents" are updated values (see the docstring of the module), except new_parameters[REST], which is a
    # gradient.
    new_parameters, new_opt_state, squared_norms = pullback(jnp.ones(()))
    rest_gradient = new_parameters[REST]
    # Step counts are integers, whose cotangents have the type float0 and no values. The old counts take their place.
    new_opt_state = jax.tree.map(
        lambda new, old: old if new.dtype == jax.dtypes.float0 else new, new_opt_state, opt_state
    )
    norm = jnp.sqrt(sum(squared_norms.values()) + optax.tree.norm(rest_gradient, squared=True))
    updates, new_opt_state[REST] = optimizer.update(rest_gradient, rest_opt_state, parameters[REST])
    if REST in scales:
        updates = jax.tree.map(jnp.multiply, updates, scales[REST])
    new_parameters[REST] = optax.apply_updates(parameters[REST], updates)
    # REST comes first, because the merged state takes the step counts of the first state, and only REST has new counts.
    paths = [REST, *opt_state]
    merged_opt_state = _map_parameter_trees(
        lambda *trees: merge_stages(dict(zip(paths, trees, strict=True))), *(new_opt_state[path] for path in paths)
    )
    return loss, accuracy, norm, merge_stages(new_parameters), merged_opt_state


def _of_layers(scales) -> tuple[float, ...]:
    """Returns the factor of each layer of a stage. All arrays of a layer have the same one."""
    return tuple(jax.tree.leaves(scales)[0].ravel().tolist())


def _run_layers(optimizer, scales, opt_state, squared_norm, apply_layer, parameters, shared, tokens, rng):
    """Runs the layers of a stage; the last five arguments are those of `Stage.run_layers`.

    `squared_norm` is a dummy input of value 0. Its cotangent returns the squared norm of the gradient.
    """
    parameters, shared = nnx.to_pure_dict(parameters), nnx.to_pure_dict(shared)
    return _scan_with_update(apply_layer, optimizer, scales, parameters, opt_state, squared_norm, shared, tokens, rng)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan_with_update(apply_layer, optimizer, scales, parameters, opt_state, squared_norm, shared, tokens, rng):
    """Scans the layers. `opt_state` and `squared_norm` are inputs only so that their cotangents exist."""
    return jax.lax.scan(lambda tokens, layer: apply_layer(tokens, layer, shared), tokens, (parameters, rng))[0]


def _scan_forward(apply_layer, optimizer, scales, parameters, opt_state, squared_norm, shared, tokens, rng):
    """Scans the layers and keeps the input of each layer, as model.remat=full does."""
    tokens, inputs = jax.lax.scan(
        lambda tokens, layer: (apply_layer(tokens, layer, shared)[0], tokens), tokens, (parameters, rng)
    )
    return tokens, (parameters, opt_state, squared_norm, shared, inputs, rng)


def _scan_backward(apply_layer, optimizer, scales, residuals, cotangent):
    """Returns the updated parameters, the updated optimizer state, the squared gradient norm, and true cotangents.

    The true cotangents are those of `shared`, the sum over the layers, and of `tokens`.
    """
    parameters, opt_state, squared_norm, shared, inputs, rng = residuals
    depth = len(jax.tree.leaves(parameters)[0])

    def update_layer(step, carry):
        cotangent, shared_gradient, parameters, opt_state, squared_norm = carry
        i = depth - 1 - step
        layer, layer_opt_state, layer_rng, layer_input = jax.tree.map(
            # Scalars, such as step counts, are not stacked. All layers use the same value.
            lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False) if x.ndim else x,
            (parameters, opt_state, rng, inputs),
        )
        _, pullback = jax.vjp(
            lambda layer, shared, tokens: apply_layer(tokens, (layer, layer_rng), shared)[0], layer, shared, layer_input
        )
        gradient, shared_part, cotangent = pullback(cotangent)
        shared_gradient = jax.tree.map(jnp.add, shared_gradient, shared_part)
        squared_norm += optax.tree.norm(gradient, squared=True)
        updates, layer_opt_state = optimizer.update(gradient, layer_opt_state, layer)
        if scales is not None:
            scale = jnp.asarray(scales, jnp.float32)[i]
            updates = jax.tree.map(lambda update: update * scale, updates)
        new = optax.apply_updates(layer, updates), layer_opt_state

        def write(stacks):
            return jax.tree.map(
                lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0) if x.ndim else x, stacks, new
            )

        # XLA updates the carried stacks in place only if it can prove that all reads of them come before the writes,
        # and copies them otherwise. A branch of lax.cond starts after its predicate is known. Therefore the writes are
        # in a branch whose predicate depends on the gradient norm and the cotangent, and so on every read. XLA cannot
        # fold the predicate to a constant, since whether these are finite is known only at run time. One element of
        # each array of the cotangent suffices, since XLA orders whole instructions and not single elements.
        depends_on_reads = squared_norm + sum(
            x.ravel()[0] for x in jax.tree.leaves(cotangent) if _is_inexact(x) and x.size
        )
        parameters, opt_state = jax.lax.cond(
            jnp.isfinite(depends_on_reads), write, lambda stacks: stacks, (parameters, opt_state)
        )
        return cotangent, shared_gradient, parameters, opt_state, squared_norm

    carry = cotangent, jax.tree.map(jnp.zeros_like, shared), parameters, opt_state, squared_norm
    cotangent, shared_gradient, parameters, opt_state, squared_norm = jax.lax.fori_loop(0, depth, update_layer, carry)
    return parameters, jax.tree.map(_as_cotangent, opt_state), squared_norm, shared_gradient, cotangent, None


def _is_inexact(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _as_cotangent(x):
    """Returns `x` if it is inexact. For integers, returns zeros of type float0, which JAX requires as cotangents."""
    return x if _is_inexact(x) else np.zeros(x.shape, jax.dtypes.float0)


_scan_with_update.defvjp(_scan_forward, _scan_backward)
