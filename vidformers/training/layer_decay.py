"""Layer-wise decay of the learning rate, for fine-tuning.

A model has L blocks. The embedding is layer 0, the blocks are layers 1 to L, and the final norm and the head are layer
L + 1. The learning rate of layer l is that of the schedule, times decay ** (L + 1 - l).

The method is that of ELECTRA (arXiv 2003.10555). The layers are those of BEiT (arXiv 2106.08254, beit/optim_factory.py
in github.com/microsoft/unilm) and MAE (util/lr_decay.py in github.com/facebookresearch/mae), and for models with an
embedding before each stage those of SimMIM's Swin (optimizer.py in github.com/microsoft/SimMIM).
"""

from typing import Any

import jax
import numpy as np

_AFTER_BLOCKS = ("norm", "out")  # modules of an encoder that follow its blocks


def learning_rate_scales(parameters: Any, decay: float) -> Any:
    """Returns the factors of the learning rate, for each array of the parameters.

    Args:
        parameters: the parameters of a model, with layers stacked or not (`parallel.state`). Shapes suffice.
        decay: the factor from a layer to the one before.
    Returns:
        A tree of the same structure, of float32 arrays that broadcast: with axes (depth, 1, ..., 1) for stacked layers,
        otherwise scalars.
    """
    numbers = layer_numbers(parameters)
    last = max(map(np.max, jax.tree.leaves(numbers)))
    return jax.tree.map(
        lambda leaf, number: (
            np.float32(decay ** (last - np.reshape(number, (-1,) + (1,) * (leaf.ndim - 1))))
            if np.ndim(number)
            else np.float32(decay ** float(last - number))
        ),
        parameters,
        numbers,
    )


def layer_numbers(parameters: Any) -> Any:
    """Returns the number of the layer of each array, or the numbers of its layers if it holds a stack of them.

    - Blocks are counted through all stages of the encoder, and then through those of the readout: in VTN, the layers
      over frames follow those of the backbone. In `models.resnet`, a bottleneck is a block.
    - The embedding before a later stage, and entries of a dictionary that the blocks of a stage share, have the number
      of the last block before that stage and of the last block of that stage.
    - Modules of an encoder after its blocks have the number of the next block, or L + 1.
    - All other parameters of an encoder, such as the class token, are layer 0. Those of a readout and of the head are
      layer L + 1: fine-tuning starts with new ones.
    """
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    depths: dict[tuple, int] = {}
    for path, leaf in leaves:
        keys = _keys(path)
        if (group := _group(keys)) is None or group[-2] == "embeddings":
            continue
        index = _index_of_layer(path)
        depth = 1 if group[-2] == "blocks" else len(leaf) if index is None else index + 1
        if group[-2] == "blocks" or "layers" in keys:
            depths[group] = max(depths.get(group, 0), depth)
    groups = sorted(depths, key=lambda group: (group[0] != "encoder", int(group[-1])))
    starts = dict(zip(groups, np.cumsum([0, *(depths[group] for group in groups)]).tolist(), strict=False))
    in_encoder = sum(depths[group] for group in groups if group[0] == "encoder")
    last = sum(depths.values()) + 1

    def number(path, leaf):
        keys = _keys(path)
        group = _group(keys)
        if group is not None and group[-2] == "embeddings":
            return starts[*group[:-2], "stages", group[-1]]
        if group is not None and "layers" in keys:
            index = _index_of_layer(path)
            return starts[group] + 1 + (np.arange(depths[group]) if index is None else index)
        if group is not None:  # a block, or a shared dictionary
            return starts[group] + depths[group]
        if keys[0] != "encoder":
            return last
        return in_encoder + 1 if next(key for key in keys if key != "encoder") in _AFTER_BLOCKS else 0

    return jax.tree_util.tree_map_with_path(number, parameters)


def _keys(path) -> tuple:
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _group(keys: tuple) -> tuple | None:
    """Returns the path of the stage, block or embedding in a list of these to which an array belongs, or None."""
    places = [place for place, key in enumerate(keys) if key in ("stages", "blocks", "embeddings")]
    return keys[: places[0] + 2] if places else None


def _index_of_layer(path) -> int | None:
    """Returns the index of the layer in its stage, or None if the array holds a stack of layers."""
    return next((entry.idx for entry in path if isinstance(entry, jax.tree_util.SequenceKey)), None)
