"""What every layout gives, and how the arrays of a file are asked for."""

import re
from dataclasses import dataclass, field

import numpy as np

from vidformers.errors import ConfigError

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMESFORMER = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


@dataclass(kw_only=True)
class Transformer:
    """A transformer over patches, of an image or of a clip.

    Attributes:
      layout: whose, in words.
      patch: {'kernel': (y, x, c, d), 'bias': (d)}, or (t, y, x, c, d) of tubelets.
      classes: (c, d), the class token first.
      space: (c + n, d), positions of the class tokens and of the patches, row by row; of `joint` tables frame by frame.
      joint: whether the patches of the whole clip have positions of their own, and not those of a frame alone.
      tubes: t of a joint table, or None where the file does not say.
      time: (t, d), positions of the frames, or None.
      blocks: for each layer the sublayers 'time' (where there is one), 'space' and 'mlp', trees of arrays as those of
        `SelfAttention` and `Mlp`.
      norm: the last one.
      readout: what reads the frames, a tree as that of `TemporalEncoder` with 'layers' for its stages, or None.
      head: {'kernel': (d, classes), 'bias': (classes)}, or None.
      future_first: whether it was trained with the first channels of class tokens taken from the frame after, not
        before, as TokenShift's code does.
      normalisation: (mean, deviation) of the pixels where the layout tells, or None.
      left: what the file holds that has no place in any model here, in words.
      unsaid: what the file does not say and a model must, a sentence each.
    """

    layout: str
    patch: dict
    classes: np.ndarray
    space: np.ndarray
    blocks: list[dict]
    norm: dict
    head: dict | None = None
    joint: bool = False
    tubes: int | None = None
    time: np.ndarray | None = None
    readout: dict | None = None
    future_first: bool = False
    normalisation: tuple | None = None
    left: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()

    @property
    def of_images(self) -> bool:
        """Whether nothing in it knows of time."""
        video = self.time is not None or "time" in self.blocks[0] or self.readout is not None
        return not (video or self.joint or self.future_first or self.patch["kernel"].ndim == 5)


@dataclass(kw_only=True)
class Windows:
    """A Video Swin.

    Attributes:
      layout, norm, head, normalisation, left, unsaid: as of `Transformer`.
      patch: {'kernel': (t, y, x, c, d), 'bias': (d)}.
      embeddings: of each stage a tree, of the first its norm alone.
      stages: of each its blocks, each with 'attention' and 'mlp', trees as those of `ShiftedWindowAttention` and `Mlp`.
      rows: (n n), the row of the table of positions for each two tokens of a window, or None where there is none.
    """

    layout: str
    patch: dict
    embeddings: list[dict]
    stages: list[list[dict]]
    norm: dict
    rows: np.ndarray | None = None
    head: dict | None = None
    normalisation: tuple | None = None
    left: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()


@dataclass
class Names:
    """The arrays of a file, which remembers which ones were asked for, and the configuration beside it."""

    arrays: dict[str, np.ndarray]
    prefix: str = ""
    about: dict = field(default_factory=dict)
    used: set = field(default_factory=set)

    def __contains__(self, name):
        return self.prefix + name in self.arrays

    def __call__(self, name) -> np.ndarray:
        name = self.prefix + name
        if name not in self.arrays:
            raise ConfigError(f"the array {name!r} is missing")
        self.used.add(name)
        return np.asarray(self.arrays[name], np.float32)

    def count(self, pattern) -> int:
        """How many numbers from 0 on stand where `pattern` has its group."""
        found = {int(match[1]) for name in self.arrays if (match := re.match(re.escape(self.prefix) + pattern, name))}
        if found != set(range(len(found))):
            raise ConfigError(f"the layers {sorted(found)} are not numbered from 0 on")
        return len(found)

    def unused(self) -> list[str]:
        return [name for name in self.arrays if name not in self.used]

    # PyTorch keeps (out, in) where we keep (in, out), and convolutions as (out, in, y, x).

    def linear(self, *names, scale=None):
        """Linear layers side by side."""
        kernel = np.concatenate([self(f"{name}.weight").T for name in names], axis=1)
        bias = np.concatenate([self._bias(name) for name in names])
        if scale is not None:
            kernel, bias = kernel * scale, bias * scale
        return {"kernel": kernel, "bias": bias}

    def _bias(self, name):
        """Zero for queries, keys or values where no layer of the file has one."""
        part = name.rpartition(".")[2]
        if part in ("qkv", "query", "key", "value") and not any(
            other.endswith(f".{part}.bias") for other in self.arrays
        ):
            return np.zeros(len(self(f"{name}.weight")), np.float32)
        return self(f"{name}.bias")

    def norm(self, name):
        return {"scale": self(f"{name}.weight"), "bias": self(f"{name}.bias")}

    def convolution(self, name):
        kernel = self(f"{name}.weight")
        return {"kernel": np.moveaxis(kernel, (1, 0), (-2, -1)), "bias": self(f"{name}.bias")}

    def head(self, name):
        return self.linear(name) if f"{name}.weight" in self and self(f"{name}.weight").ndim == 2 else None


def has(*endings):
    """A function of arrays that gives the prefix before all of these names, or None."""

    def recognised(arrays):
        for name in arrays:
            if name.endswith(endings[0]):
                prefix = name.removesuffix(endings[0])
                if prefix.count(".") <= 3 and all(prefix + ending in arrays for ending in endings):
                    return prefix
        return None

    return recognised


def pretraining(names):
    """What only pretraining used."""
    found = [
        name
        for name in ("mask_token", "embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
        if name in names
    ]
    for name in found:
        names(name)
    return tuple(found)
