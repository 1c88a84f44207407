"""Fitting a model from elsewhere to one here: what all kinds of models share."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vidformers.attention.dictionary import head_multiplier
from vidformers.errors import ConfigError, require

TIMES = ("zero", "copy", "draw")


@dataclass(frozen=True, kw_only=True)
class Init:
    """The section `init`: what a run starts from.

    Args:
        weights: file, folder or repository, see `pretrained.files.open_file`; None draws all parameters.
        time: what becomes of attention over time and of temporal tables where the weights have none. 'zero': a copy of
            the attention in space with an output of zero, and a table of zero, so that a model which is frame-wise
            otherwise starts as the image model; 'copy': the whole copy, and a table drawn; 'draw': both drawn.
        tube: what becomes of the kernel of images in patches of several frames: 'centre', it is that of the middle one
            and the others' is zero; 'average', each frame has its share (ViViT, arXiv:2103.15691, sec. 3.4).
        patch: 'refuse' patches of another size, or 'resize' the kernel (FlexiViT, arXiv:2212.08013, eq. 5).
        head: 'auto' takes the head where the classes are the same, by name, whatever their order; 'as_is' takes it by
            number; 'draw' leaves it.
        channels: order of colours that the weights expect, 'rgb' or 'bgr'.
        allow: names, or beginnings of them, of arrays that may stay unused; 'layers' and 'time' for layers at the end
            and for attention over time to stay so; 'heads' and 'normalisation' for those to differ from the weights'.
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
        for name, choices in (
            ("time", TIMES),
            ("tube", ("centre", "average")),
            ("patch", ("refuse", "resize")),
            ("head", ("auto", "as_is", "draw")),
            ("channels", ("rgb", "bgr")),
        ):
            require(
                getattr(self, name) in choices,
                f"init.{name}={getattr(self, name)!r} must be one of {', '.join(choices)}.",
            )


@dataclass(frozen=True)
class Row:
    """What became of one parameter: `how` is loaded, resized or new; `note` says from what or how."""

    parameter: str
    how: str
    note: str = ""


class Fit:
    """The parameters of a model that come from one of another library, each placed by a subclass.

    Args:
        model: abstract, of `build`.
        shapes: of its parameters, as a tree of dictionaries.
        source: of the layout that the subclass is for.
        init: see `Init`.
        order: for each class of the model its class in the source's head; None draws the head.
    Attributes:
        shapes: path in the tree of parameters -> shape.
        values: path in the tree of parameters -> array.
        rows: one `Row` for each parameter, in the order of the tree.
        left: parts of the source that `Init.allow` left out, in words.
    Raises:
        ConfigError: the two do not fit; the sentence goes on from the path.
    """

    def __init__(self, model, shapes, source, init: Init, order=None):
        self.source, self.init, self.values, self.left, self._rows = source, init, {}, [], {}
        self.shapes = {path: leaf.shape for path, leaf in flatten(shapes).items()}
        self.place(model)
        if order is not None:
            self.tree(("head",), {name: array[..., order] for name, array in source.head.items()}, "head")
        self.rows = [Row(".".join(map(str, path)), *self._rows.get(path, ("new", "drawn"))) for path in self.shapes]

    def place(self, model) -> None:
        """Puts all but the head where it belongs."""
        raise NotImplementedError

    def no_place(self):
        raise ConfigError(f"the layout is that of a {self.source.layout}, which this model has no place for")

    def allow(self, word, what) -> None:
        """Refuses to leave `what`, unless told."""
        if not what:
            return
        if word not in self.init.allow:
            raise ConfigError(f"the model has no place for its {what}; init.allow=\"('{word}',)\" goes on without")
        self.left.append(what)

    def put(self, path, array, how, note) -> None:
        expected, name = self.shapes[path], ".".join(map(str, path))
        if array.shape != expected:  # where there is no note, the array has the name of the parameter
            ours = f"the model's {name}" if note else "the model's"
            raise ConfigError(f"{note or name} has the shape {array.shape}, where {ours} has {expected}")
        self.values[path] = np.asarray(array, np.float32)
        self._rows[path] = (how, note)

    def tree(self, path, tree, note) -> None:
        """A tree of arrays as the model has it there."""
        for name, value in tree.items():
            if isinstance(value, dict):
                self.tree((*path, name), value, f"{note}.{name}")
            else:
                self.put((*path, name), value, "loaded", f"{note}.{name}")

    def stack(self, path, trees, note) -> None:
        """Trees of layers, which a stage has stacked."""
        self.tree(path, jax.tree.map(lambda *arrays: np.stack(arrays), *trees), note)

    def zero(self, path) -> None:
        self.put(path, np.zeros(self.shapes[path]), "new", "zero")

    def patch(self, path, frames: int, size: int) -> None:
        """The kernel and bias that make tokens of patches of `frames` frames and `size` pixels a side."""
        kernel, how = self.source.patch["kernel"], "loaded"
        note = f"patch of {' x '.join(map(str, kernel.shape[:-2]))}"
        if self.init.channels == "bgr":
            kernel = kernel[..., ::-1, :]
        if kernel.shape[-4:-2] != (size, size):
            require(
                self.init.patch == "resize",
                f"its patches have {kernel.shape[-3]} pixels a side, and model.patch_size is {size}; "
                "init.patch=resize takes them all the same.",
            )
            kernels = kernel.reshape(-1, *kernel.shape[-4:])
            kernel = np.stack([resize_patch(each, (size, size)) for each in kernels]).reshape(
                *kernel.shape[:-4], size, size, *kernel.shape[-2:]
            )
            how = "resized"
        if kernel.ndim == 4 and frames > 1:
            kernel, how = inflate(kernel, frames, self.init.tube), "resized"
            note += f" to {frames} frames, {self.init.tube}"
        if kernel.ndim == 5 and len(kernel) != frames:
            raise ConfigError(f"its patches span {len(kernel)} frames, those of the model {frames}")
        self.put((*path, "kernel"), kernel.reshape(-1, kernel.shape[-1]), how, note)
        self.put((*path, "bias"), self.source.patch["bias"], "loaded", "patch.bias")


def flatten(tree, path=()):
    """A tree of dictionaries as path -> leaf."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, child in tree.items() for key, value in flatten(child, (*path, name)).items()}


def resize(table, shape, method="cubic"):
    """A table (... d) at other places between the same ends, (*shape d); axes that stay as long are left alone."""
    return np.asarray(jax.image.resize(jnp.asarray(table), (*shape, table.shape[-1]), method))


def resize_grid(table, grid):
    """A table (t y x d) of positions on another grid (t y x): bicubic in space, linear in time."""
    table = resize(table, (len(table), *grid[1:]))
    return table if len(table) == grid[0] else resize(table, grid, "linear")


def resize_time(table, frames: int):
    """A table (t d) of another number of frames; one of as many is left alone."""
    return table if len(table) == frames else resize(table[:, None], (frames, 1))[:, 0]


def inflate(kernel, frames: int, how: str):
    """A kernel of images (y x c d) for patches of several frames (t y x c d), by `Init.tube`."""
    if how == "average":
        return np.repeat(kernel[None] / frames, frames, axis=0)
    tube = np.zeros((frames, *kernel.shape), kernel.dtype)
    tube[frames // 2] = kernel
    return tube


def resize_patch(kernel, shape):
    """A kernel (y x c d) for patches of another size, which answers to a patch that is scaled up as it did to the patch
    itself (FlexiViT, arXiv:2212.08013, eq. 5: the pseudoinverse of the scaling)."""
    before = kernel.shape[:2]
    basis = np.eye(math.prod(before), dtype=np.float32).reshape(-1, *before)
    scaling = np.asarray(jax.vmap(lambda image: jax.image.resize(image, shape, "linear"))(basis))
    matrix = scaling.reshape(math.prod(before), math.prod(shape))  # a patch, as a row, times this is the scaled patch
    flat = np.linalg.pinv(matrix) @ kernel.reshape(math.prod(before), -1)
    return flat.reshape(*shape, *kernel.shape[2:]).astype(np.float32)


def with_views(tree, sublayer):
    """A tree whose output projection takes as many heads as the sublayer has: a dictionary's own are zero at first."""
    kernel = tree["out"]["kernel"]
    if head_multiplier(sublayer.dictionary) == 1:
        return tree
    return tree | {"out": tree["out"] | {"kernel": np.concatenate([kernel, np.zeros_like(kernel)])}}
