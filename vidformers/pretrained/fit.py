"""Fitting a transformer from elsewhere to a model here: which arrays become which parameters."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vidformers.attention.core import SelfAttention
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.encoder import Encoder, FrameByFrame, Mlp
from vidformers.errors import ConfigError, require
from vidformers.pretrained.layouts import Transformer

TIMES = ("zero", "copy", "draw")


@dataclass(frozen=True, kw_only=True)
class Init:
    """The section `init`: what a run starts from.

    Args:
        weights: file, folder or repository, see `pretrained.files.open_file`; None draws all parameters.
        time: what becomes of attention over time and of temporal tables where the weights have none. 'zero': a copy of
            the attention in space with an output of zero, and a table of zero, so that a model which is frame-wise
            otherwise starts as the image model; 'copy': the whole copy, and a table drawn; 'draw': both drawn.
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
    patch: str = "refuse"
    head: str = "auto"
    channels: str = "rgb"
    allow: tuple[str, ...] = ()

    def __post_init__(self):
        for name, choices in (("time", TIMES), ("patch", ("refuse", "resize")), ("head", ("auto", "as_is", "draw")),
                              ("channels", ("rgb", "bgr"))):
            require(getattr(self, name) in choices,
                    f"init.{name}={getattr(self, name)!r} must be one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Row:
    """What became of one parameter: `how` is loaded, resized or new; `note` says from what or how."""
    parameter: str
    how: str
    note: str = ""


class Fit:
    """The parameters of a model that come from a transformer.

    Args:
        model: abstract, of `build`.
        source: the transformer.
        init: see `Init`.
        order: for each class of the model its class in the source's head; None draws the head.
    Attributes:
        values: path in the tree of parameters -> array.
        rows: one `Row` for each parameter, in the order of the tree.
    Raises:
        ConfigError: the two do not fit; the sentence goes on from the path.
    """

    def __init__(self, model, shapes, source: Transformer, init: Init, order=None):
        self.source, self.init, self.values, self._rows = source, init, {}, {}
        self._shapes = {path: leaf.shape for path, leaf in flatten(shapes).items()}
        root, encoder = ("encoder",), model.encoder
        if isinstance(encoder, FrameByFrame):
            root, encoder = ("encoder", "encoder"), encoder.encoder
        if not isinstance(encoder, Encoder) or not hasattr(encoder.embedding, "patch_size"):
            raise ConfigError(f"the layout is that of a {source.layout}, which this model has no place for")
        self._embed(root, encoder)
        self._layers(root, encoder)
        self._allow("time", "attention over time" if "time" in source.blocks[0] and not self._timed else "")
        self._allow("time", "positions of frames" if source.time is not None and encoder.embedding.time is None else "")
        self._norm((*root, "norm"), source.norm, "norm")
        if order is not None:
            self._tree(("head",), {name: array[..., order] for name, array in source.head.items()}, "head")
        self.rows = [Row(".".join(map(str, path)), *self._rows.get(path, ("new", "drawn"))) for path in self._shapes]

    def _allow(self, word, what):
        """Refuses to leave `what`, unless told."""
        if what and word not in self.init.allow:
            raise ConfigError(f"the model has no place for its {what}; init.allow=\"('{word}',)\" goes on without")

    def _put(self, path, array, how, note):
        expected = self._shapes[path]
        if array.shape != expected:
            raise ConfigError(f"{note} has the shape {array.shape}, where the model's {'.'.join(map(str, path))} has "
                              f"{expected}")
        self.values[path] = np.asarray(array, np.float32)
        self._rows[path] = (how, note)

    def _tree(self, path, tree, note):
        for name, value in tree.items():
            if isinstance(value, dict):
                self._tree((*path, name), value, f"{note}.{name}")
            else:
                self._put((*path, name), value, "loaded", f"{note}.{name}")

    def _norm(self, path, tree, note):
        self._tree(path, tree, note)

    def _embed(self, root, encoder):
        source, embedding, at = self.source, encoder.embedding, (*root, "embedding")
        kernel, how = source.patch["kernel"], "loaded"
        if kernel.ndim == 5:
            raise ConfigError(f"its patches span {kernel.shape[0]} frames, those of the model one")
        if self.init.channels == "bgr":
            kernel = kernel[..., ::-1, :]
        size = (embedding.patch_size, embedding.patch_size)
        note = f"patch of {kernel.shape[0]} x {kernel.shape[1]}"
        if kernel.shape[:2] != size:
            require(self.init.patch == "resize",
                    f"its patches have {kernel.shape[0]} pixels a side, and model.patch_size is {size[0]}; "
                    "init.patch=resize takes them all the same.")
            kernel, how = resize_patch(kernel, size), "resized"
        self._put((*at, "patch", "kernel"), kernel.reshape(-1, kernel.shape[-1]), how, note)
        self._put((*at, "patch", "bias"), source.patch["bias"], "loaded", "patch.bias")
        self._put((*root, "class_token"), source.classes[0], "loaded", "class token")
        side = embedding.shape[1] // embedding.patch_size
        count = math.isqrt(len(source.space) - 1)
        if count ** 2 != len(source.space) - 1:
            raise ConfigError(f"its {len(source.space) - 1} positions are no square")
        grid = source.space[1:].reshape(count, count, -1)
        if count != side:
            grid = resize(grid, (side, side))
        self._put((*at, "space"), np.concatenate([source.space[:1], grid.reshape(side ** 2, -1)]),
                  "loaded" if count == side else "resized", f"positions of {count} x {count} patches")
        if embedding.time is not None:
            self._times((*at, "time"), embedding.shape[0])

    def _times(self, path, frames):
        if self.source.time is None:
            if self.init.time == "zero":
                self._put(path, np.zeros(self._shapes[path]), "new", "zero")
            return
        count, table = len(self.source.time), self.source.time
        if count != frames:
            table = resize(table[:, None], (frames, 1))[:, 0]
        self._put(path, table, "loaded" if count == frames else "resized", f"positions of {count} frames")

    def _layers(self, root, encoder):
        number, blocks, self._timed = 0, self.source.blocks, False
        for place, stage in enumerate(encoder.stages):
            sublayers = list(stage.layers.sublayers)
            if not any(isinstance(sublayer, SelfAttention) for sublayer in sublayers):
                continue  # class attention, which image models do not have
            if number + stage.depth > len(blocks):
                raise ConfigError(f"it has {len(blocks)} layers, and the model needs {number + stage.depth} or more of "
                                  "them")
            chosen = blocks[number:number + stage.depth]
            for j, sublayer in enumerate(sublayers):
                found = self._sublayer(sublayer, chosen)
                if found is None:
                    continue
                at = (*root, "stages", place, "layers", "sublayers", j)
                note, trees = found
                stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *trees)
                last = number + stage.depth - 1
                self._tree(at, stacked, f"layers {number} to {last}, {note}")
                if note.endswith("with zero"):
                    self._rows[(*at, "out", "kernel")] = self._rows[(*at, "out", "bias")] = ("new", "zero")
            number += stage.depth
        self._allow("layers", f"layers {number} to {len(blocks) - 1}" if number < len(blocks) else "")

    def _sublayer(self, sublayer, blocks):
        """(what it is, its tree for each block), or None where it is drawn."""
        if isinstance(sublayer, Mlp):
            return "mlp", [block["mlp"] for block in blocks]
        if not isinstance(sublayer, SelfAttention):
            return None
        if not isinstance(sublayer.scheme, (Time, Motion)):
            return "space", [block["space"] for block in blocks]
        self._timed = True
        if "time" in blocks[0]:
            trees = [dict(block["time"]) for block in blocks]
            if sublayer.extra is None:  # W (V x + b) + c is one product
                for tree in trees:
                    out, extra = tree["out"], tree.pop("extra")
                    tree["out"] = {"kernel": out["kernel"] @ extra["kernel"],
                                   "bias": out["bias"] @ extra["kernel"] + extra["bias"]}
            return "time", trees
        if self.init.time == "draw":
            return None
        trees = [dict(block["space"]) for block in blocks]
        if self.init.time == "zero" and sublayer.extra is None:  # otherwise that projection starts at zero
            for tree in trees:
                tree["out"] = jax.tree.map(np.zeros_like, tree["out"])
            return "space with zero", trees
        return "space", trees


def flatten(tree, path=()):
    """A tree of dictionaries as path -> leaf."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, child in tree.items() for key, value in flatten(child, (*path, name)).items()}


def resize(table, shape):
    """A table (y x d) at other places of the same square, bicubic."""
    return np.asarray(jax.image.resize(jnp.asarray(table), (*shape, table.shape[-1]), "cubic"))


def resize_patch(kernel, shape):
    """A kernel (y x c d) for patches of another size, which answers to a patch that is scaled up as it did to the patch
    itself (FlexiViT, arXiv:2212.08013, eq. 5: the pseudoinverse of the scaling)."""
    before = kernel.shape[:2]
    basis = np.eye(math.prod(before), dtype=np.float32).reshape(-1, *before)
    scaling = np.asarray(jax.vmap(lambda image: jax.image.resize(image, shape, "linear"))(basis))
    matrix = scaling.reshape(math.prod(before), math.prod(shape))  # a patch, as a row, times this is the scaled patch
    flat = np.linalg.pinv(matrix) @ kernel.reshape(math.prod(before), -1)
    return flat.reshape(*shape, *kernel.shape[2:]).astype(np.float32)
