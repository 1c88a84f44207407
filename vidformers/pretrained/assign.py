"""Assigning weights to the parameters of a model.

Contains the section `init`, the base class of the assignments, and functions that resize arrays.
"""

import math
import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vidformers.attention.dictionary import head_multiplier
from vidformers.errors import ConfigError, require, require_path, require_types

_LARGEST_PATCH = 64  # pixels of a side: resizing takes memory by the fourth power
_MOST_POSITIONS = 4096  # along an axis of a table that is resized: resizing takes memory by their number
_CHOICES = {
    "time": ("zero", "copy", "draw"),
    "tube": ("centre", "average"),
    "patch": ("refuse", "resize"),
    "head": ("auto", "as_is", "draw"),
    "channels": ("rgb", "bgr"),
}


@dataclass(frozen=True, kw_only=True)
class Init:
    """The config section `init`: the initial values of the parameters.

    'draw' initialises parameters randomly, as in a run without weights.

    Args:
        weights: a file, folder or repository, see `pretrained.files.open_file`. `~` is the home folder. None draws all
            parameters.
        time: the initial values of attention that the weights lack, and of the positions of frames. The weights of an
            image model lack all attention but one per block, see `roles.block_roles`. 'zero': a copy of the attention
            within a frame with an output projection of zero, and positions of zero. If nothing else in the model
            exchanges information between frames, the model then starts as the image model. 'copy': the copy with its
            output projection, and drawn positions. 'draw': both are drawn.
        tube: the patch kernel for patches of several frames, made from a kernel for images. 'centre': the kernel in the
            middle frame, zero in the other frames. 'average': the kernel divided by the number of frames, in every
            frame (ViViT, arXiv:2103.15691, sec. 3.4).
        patch: 'refuse' a patch kernel of another size, or 'resize' it (FlexiViT, arXiv:2212.08013, eq. 5).
        head: 'auto' loads the head if the classes have the same names, in any order. 'as_is' loads it by class number.
            'draw' draws it.
        channels: the order of the colour channels that the weights expect, 'rgb' or 'bgr'.
        allow: names of arrays, or prefixes of names, that may stay unused. 'layers' and 'time' allow the last layers
            and the attention over time to stay unused. 'heads' and 'normalisation' allow the model to differ from the
            weights in the number of heads and in the normalisation of pixels.
    Raises:
        ConfigError: an unknown choice.
    """

    weights: str | None = None
    time: str = "zero"
    tube: str = "centre"
    patch: str = "refuse"
    head: str = "auto"
    channels: str = "rgb"
    allow: tuple[str, ...] = ()

    def __post_init__(self):
        if isinstance(self.weights, (str, os.PathLike)):
            object.__setattr__(self, "weights", require_path("init.weights", self.weights))
        require_types("init", vars(self), type(self))
        for name, choices in _CHOICES.items():
            require(
                getattr(self, name) in choices,
                f"init.{name}={getattr(self, name)!r} must be one of {', '.join(choices)}.",
            )


@dataclass(frozen=True)
class ParameterOrigin:
    """The origin of one parameter.

    `how` is 'loaded', 'resized' or 'new'. `note` names the source of the values, or for new parameters the values:
    'zero' or 'drawn' (randomly initialised).
    """

    parameter: str
    how: str
    note: str = ""


class Assignment:
    """Computes values for the parameters of a model from weights. There is a subclass for each structure of weights.

    Args:
        model: an abstract model, from `load.abstract_model`.
        shapes: the shapes of its parameters, a tree of dictionaries.
        weights: the weights, in the structure that the subclass reads.
        init: the section `init`.
        class_order: for each class of the model the class of the weights' head. None draws the head.
    Attributes:
        shapes: path in the tree of parameters -> shape.
        values: path in the tree of parameters -> array.
        origins: one `ParameterOrigin` for each parameter, in the order of the tree.
        not_loaded: the parts of the weights that are not loaded, as `Init.allow` permits.
    Raises:
        ConfigError: the weights do not belong to such a model. The message continues a sentence that starts with the
            path of the file.
    """

    def __init__(self, model, shapes, weights, init: Init, class_order=None):
        self.weights, self.init = weights, init
        self.values: dict[tuple, np.ndarray] = {}
        self.not_loaded: list[str] = []
        self._origins: dict[tuple, tuple[str, str]] = {}
        self.shapes = {path: leaf.shape for path, leaf in flatten(shapes).items()}
        self.place(model)
        if class_order is not None:
            head = {name: array[..., class_order] for name, array in weights.head.items()}
            self.place_tree(("head",), head, "head")
        self.origins = [
            ParameterOrigin(".".join(map(str, path)), *self._origins.get(path, ("new", "drawn")))
            for path in self.shapes
        ]

    def place(self, model) -> None:
        """Places all arrays except those of the head."""
        raise NotImplementedError

    def refuse_model(self):
        raise ConfigError(f"the layout is that of a {self.weights.layout}, which does not fit this model")

    def check_depths(self, model_depths: list[int]) -> None:
        """Raises ConfigError unless the stages of the weights have as many blocks as those of the model."""
        depths = list(map(len, self.weights.stages))
        require(depths == model_depths, f"its stages have {depths} blocks, and model.depths is {model_depths}.")

    def leave_out(self, word: str, arrays: str) -> None:
        """Records that `arrays`, a description, are not loaded. Raises ConfigError unless `init.allow` has `word`."""
        if word not in self.init.allow:
            raise ConfigError(
                f"the model has no parameters for its {arrays}; init.allow=\"('{word}',)\" leaves them out"
            )
        self.not_loaded.append(arrays)

    def place_array(self, path, array, how, note) -> None:
        """Places one array. `note` is '' if the array has the name of the parameter in the file too."""
        expected, name = self.shapes[path], ".".join(map(str, path))
        if array.shape != expected:
            parameter = f"the model's {name}" if note else "the model's"
            raise ConfigError(f"{note or name} has the shape {array.shape}, where {parameter} has {expected}")
        self.values[path] = np.asarray(array, np.float32)
        self._origins[path] = (how, note)

    def check_width(self, path, array, note) -> None:
        """Raises ConfigError unless an array (... d) that is to be resized has the width of a parameter (... d)."""
        width, name = self.shapes[path][-1], ".".join(map(str, path))
        require(
            array.shape[-1] == width,
            f"{note} has the shape {array.shape}, where the model's {name} has the width {width}",
        )

    def place_tree(self, path, tree, note) -> None:
        """Places a tree of arrays, which have the names of the parameters below `path`."""
        for name, value in tree.items():
            if isinstance(value, dict):
                self.place_tree((*path, name), value, f"{note}.{name}")
            else:
                self.place_array((*path, name), value, "loaded", f"{note}.{name}")

    def place_layers(self, path, trees, note) -> None:
        """Places the trees of several layers. A stage holds them stacked along axis 0."""
        self.place_tree(path, jax.tree.map(lambda *arrays: np.stack(arrays), *trees), note)

    def place_zeros(self, path) -> None:
        self.place_array(path, np.zeros(self.shapes[path]), "new", "zero")

    def with_channels(self, tree):
        """Returns the tree of a convolution of pixels, whose kernel (... c d) reads red, green and blue."""
        return tree | {"kernel": tree["kernel"][..., ::-1, :]} if self.init.channels == "bgr" else tree

    def place_patch(self, path, frames: int, size: int) -> None:
        """Places the kernel and bias of the patch embedding, for patches of `frames` frames and `size` pixels."""
        kernel, how = self.with_channels(self.weights.patch)["kernel"], "loaded"
        require(kernel.ndim in (4, 5), f"the kernel of its patches has {kernel.ndim} axes instead of 4 or 5")
        self.check_width((*path, "bias"), kernel, "the kernel of its patches")
        if kernel.ndim == 5 and len(kernel) != frames:
            raise ConfigError(f"its patches span {len(kernel)} frames, and the patches of the model {frames}")
        note = f"patch of {' x '.join(map(str, kernel.shape[:-2]))}"
        if kernel.shape[-4:-2] != (size, size):
            require(
                self.init.patch == "resize",
                f"its patches have {kernel.shape[-3]} pixels a side, and model.patch_size is {size}; "
                "init.patch=resize resizes the kernel.",
            )
            require(
                max(kernel.shape[-4:-2]) <= _LARGEST_PATCH,
                f"its patch kernel of shape {kernel.shape} cannot be resized for this model",
            )
            frame_kernels = kernel.reshape(-1, *kernel.shape[-4:])
            kernel = np.stack([resize_patch(frame, (size, size)) for frame in frame_kernels]).reshape(
                *kernel.shape[:-4], size, size, *kernel.shape[-2:]
            )
            how = "resized"
        if kernel.ndim == 4 and frames > 1:
            kernel, how = inflate(kernel, frames, self.init.tube), "resized"
            note += f" to {frames} frames, {self.init.tube}"
        self.place_array((*path, "kernel"), kernel.reshape(-1, kernel.shape[-1]), how, note)
        self.place_array((*path, "bias"), self.weights.patch["bias"], "loaded", "patch.bias")


def flatten(tree, path=()):
    """Returns the leaves of a tree of dictionaries as path -> leaf."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, child in tree.items() for key, value in flatten(child, (*path, name)).items()}


def resize(table, shape, method="cubic"):
    """Resizes a table (... d) to (*shape d). Along axes that keep their length, values do not change."""
    most = max(table.shape[:-1])
    require(
        most <= _MOST_POSITIONS,
        f"its table has {most} positions along an axis, and at most {_MOST_POSITIONS} are resized",
    )
    return np.asarray(jax.image.resize(jnp.asarray(table), (*shape, table.shape[-1]), method))


def resize_grid(table, grid):
    """Resizes a table of positions (t y x d) to another grid (t y x): bicubic in space, linear in time."""
    table = resize(table, (len(table), *grid[1:]))
    return table if len(table) == grid[0] else resize(table, grid, "linear")


def resize_time(table, frames: int):
    """Resizes a table of positions (t d) to another number of frames."""
    return table if len(table) == frames else resize(table[:, None], (frames, 1))[:, 0]


def inflate(kernel, frames: int, how: str):
    """Makes a patch kernel (t y x c d) for several frames from one for images (y x c d). `how` is `Init.tube`."""
    if how == "average":
        return np.repeat(kernel[None] / frames, frames, axis=0)
    tube = np.zeros((frames, *kernel.shape), kernel.dtype)
    tube[frames // 2] = kernel
    return tube


def resize_patch(kernel, shape):
    """Resizes a patch kernel (y x c d), so that its response to the resized patch equals the old response to the patch.

    The kernel is multiplied by the pseudoinverse of the resizing matrix (FlexiViT, arXiv:2212.08013, eq. 5).
    """
    before = kernel.shape[:2]
    basis = np.eye(math.prod(before), dtype=np.float32).reshape(-1, *before)
    resized = np.asarray(jax.vmap(lambda image: jax.image.resize(image, shape, "linear"))(basis))
    matrix = resized.reshape(math.prod(before), math.prod(shape))  # (row vector of a patch) @ matrix: the resized patch
    flat = np.linalg.pinv(matrix) @ kernel.reshape(math.prod(before), -1)
    return flat.reshape(*shape, *kernel.shape[2:]).astype(np.float32)


def with_views(tree, sublayer):
    """Returns the tree of an attention with an output projection for as many heads as `sublayer` has outputs.

    The dictionary 'multi_view' doubles them. The output projection of the dictionary's heads starts at zero.
    """
    kernel = tree["out"]["kernel"]
    if head_multiplier(sublayer.dictionary) == 1:
        return tree
    return tree | {"out": tree["out"] | {"kernel": np.concatenate([kernel, np.zeros_like(kernel)])}}
