"""The layout of the training state: how its arrays are sharded, and whether layers are stacked.

Models, checkpoints and exports hold the parameters of equal layers stacked along axis 0, under the name `layers`. A
training step whose layers run in a scan takes them like this. A step whose layers run in a loop takes each stack as a
list with one array per layer, and the kernels of queries, keys and values one by one, with inputs last
(`unstack_layers`). Then the compiler can update the parameters in the same pass over memory that computes their
gradient, instead of joining gradients first (benchmarks/NOTES.md).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Returns the sharding of each array of a training state.

    The largest axis that is divisible by `mesh.fsdp` is sharded over `fsdp`. Arrays without such an axis are
    replicated.
    Parameters, their optimizer state and their EMA have equal shapes, so they have equal shardings.

    Args:
        mesh: the device mesh.
        abstract: the state as a tree of arrays or of `jax.ShapeDtypeStruct`, with layers stacked or not.
    Returns:
        A tree of the same structure with a `NamedSharding` in place of each array.
    """
    fsdp = mesh.shape["fsdp"]

    def sharding(path, leaf) -> NamedSharding:
        # The axis of stacked layers is never sharded, since a scan loops over it.
        axes = [axis for axis in range(1 if _is_stacked(path) else 0, leaf.ndim) if leaf.shape[axis] % fsdp == 0]
        if not axes or fsdp == 1:
            return replicated_sharding(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == largest else None for axis in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def with_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Returns the shapes and dtypes of a training state with the shardings that its arrays have on a mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def split_layers(stack) -> list:
    """Returns the arrays that are stacked along axis 0 of an array.

    The gradient of `split` is one concatenation. The gradient of indexing would be a zero-padded array per index, and
    their sum.
    """
    return [row.squeeze(0) for row in jax.lax.split(stack, [1] * stack.shape[0])]


def unstack_layers(tree: Any) -> Any:
    """Returns the tree with each array of stacked layers as a list of one array per layer.

    The kernel of a projection to queries, keys and values (d, 3 h e) becomes a list of three, each (h e, d).

    Args:
        tree: parameters, or any state that holds trees of the structure of the parameters.
    """

    def unstack(path, leaf):
        if not _is_stacked(path):
            return leaf
        layers, parts = split_layers(leaf), _num_parts(path)
        return layers if parts == 1 else [[part.T for part in jnp.split(layer, parts, axis=1)] for layer in layers]

    return jax.tree_util.tree_map_with_path(unstack, tree)


def stack_layers(tree: Any) -> Any:
    """Returns the tree with its lists of arrays stacked: the inverse of `unstack_layers`.

    A tree without lists is returned unchanged.
    """

    def join(layer):
        return jnp.concatenate([part.T for part in layer], axis=1) if _is_list(layer) else layer

    def stack(node):
        return jnp.stack([join(layer) for layer in node]) if _is_list(node) else node

    return jax.tree.map(stack, tree, is_leaf=_is_list)


def convert_layers(tree: Any, abstract: Any) -> Any:
    """Returns a tree of arrays with layers stacked or not, as in `abstract`, and with its shardings.

    Args:
        tree: the arrays, on all devices of a mesh. They are kept, so that both trees are in memory for a moment.
        abstract: a tree of `jax.ShapeDtypeStruct` with shardings.
    """
    separate, wanted = (any(map(_is_list, jax.tree.leaves(x, is_leaf=_is_list))) for x in (tree, abstract))
    if separate == wanted:
        return tree
    convert = unstack_layers if wanted else stack_layers
    return jax.jit(convert, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(tree)


def _is_list(node) -> bool:
    return isinstance(node, list)


def _num_parts(path) -> int:
    """Returns how many kernels the array with this path holds side by side."""
    module, name = path[-2:]
    return {"qkv": 3, "kv": 2}.get(getattr(module, "key", ""), 1) if getattr(name, "key", "") == "kernel" else 1


def _is_stacked(path) -> bool:
    """Returns whether a leaf with this path is an array of stacked layers."""
    in_layers = any(getattr(key, "key", None) == "layers" for key in path)
    return in_layers and not isinstance(path[-1], jax.tree_util.SequenceKey)
