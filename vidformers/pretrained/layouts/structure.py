"""The structures to which layouts convert their arrays, and the reader of the arrays of a file."""

import re
from dataclasses import dataclass, field

import numpy as np

from input_pipeline.fields import shown
from vidformers.errors import ConfigError, require

# (mean, standard deviation) of red, green and blue
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMESFORMER = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))

# The names in a block of the norm before an MLP and of its two layers.
TIMM_MLP = ("norm2", "mlp.fc1", "mlp.fc2")  # also in the code of Swin's and CvT's authors
HUGGING_FACE_MLP = ("layernorm_after", "intermediate.dense", "output.dense")

_BATCH_NORM_EPSILON = 1e-5  # of torchvision, timm, Hugging Face and CvT's authors: PyTorch's default
_HEAD_WIDTH = 64  # the width of a head in all published ViTs, for files that do not give the number of heads
_MOST_LAYERS = 1000
_LARGEST_NUMBER = 2**31 - 1


def published_heads(width: int) -> int | None:
    """Returns the number of heads of published transformers of this width, None if none has the width."""
    return width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else None


@dataclass(kw_only=True)
class TransformerWeights:
    """The weights of a transformer over the patches of an image or a clip.

    Attributes:
        layout: name of the layout, for messages.
        patch: {'kernel': (y, x, c, d), 'bias': (d)}; the kernel of tubelets is (t, y, x, c, d).
        class_tokens: (c, d), the class token first.
        space: (c + n, d), positions of the class tokens, then of the patches row by row, with `joint_positions` frame
            by frame.
        joint_positions: whether `space` has a row for every patch of the clip, not only for the patches of one frame.
        position_frames: t of joint positions, or None if the file does not give it.
        time: (t, d), positions of the frames, or None.
        blocks: one dictionary per layer with the sublayers 'time' (optional), 'space' and 'mlp'. Each sublayer is a
            tree of arrays with the parameter names of `SelfAttention` or `Mlp`.
        norm: the final norm.
        readout: the layers over frames, or None: a tree with the parameter names of `TemporalEncoder`, where 'layers'
            replaces its stages.
        head: {'kernel': (d, classes), 'bias': (classes)}, or None.
        future_first: whether, in training, the first channels of the class tokens came from the next frame and not from
            the previous one, as in the code of TokenShift's authors.
        normalisation: (mean, standard deviation) of the pixels, or None if the layout does not determine them.
        heads: the number of heads, or None if neither the file nor the width determines it.
        not_loaded: arrays of the file for which no model has a parameter.
        remarks: sentences about facts that the file does not state, so that the config must.
    """

    layout: str
    patch: dict
    class_tokens: np.ndarray
    space: np.ndarray
    blocks: list[dict]
    norm: dict
    head: dict | None = None
    joint_positions: bool = False
    position_frames: int | None = None
    time: np.ndarray | None = None
    readout: dict | None = None
    future_first: bool = False
    normalisation: tuple | None = None
    heads: int | None = None
    not_loaded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self):
        if self.heads is None:
            self.heads = published_heads(self.class_tokens.shape[-1])

    @property
    def is_image_model(self) -> bool:
        """Whether no part of the weights depends on time."""
        has_time = self.time is not None or "time" in self.blocks[0] or self.readout is not None
        return not (has_time or self.joint_positions or self.future_first or self.patch["kernel"].ndim == 5)


@dataclass(kw_only=True)
class SwinWeights:
    """The weights of a Swin or a Video Swin.

    Attributes:
        layout, norm, head, normalisation, not_loaded, remarks: as in `TransformerWeights`.
        patch: {'kernel': (t, y, x, c, d), 'bias': (d)}; the kernel for images is (y, x, c, d).
        embeddings: one tree per stage. The tree of the first stage has only the norm.
        stages: for each stage a list of blocks. A block has 'attention' and 'mlp', trees with the parameter names of
            `ShiftedWindowAttention` and `Mlp`. Position tables are ((2t - 1)(2y - 1)(2x - 1), heads) for windows of
            (t, y, x), and ((2y - 1)(2x - 1), heads) for images.
        position_index: (n n), for each pair of tokens of a window the row of the position table; None if the file does
            not have it.
    """

    layout: str
    patch: dict
    embeddings: list[dict]
    stages: list[list[dict]]
    norm: dict
    position_index: np.ndarray | None = None
    head: dict | None = None
    normalisation: tuple | None = None
    not_loaded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_image_model(self) -> bool:
        """Whether the weights are those of a Swin for images."""
        return self.patch["kernel"].ndim == 4


@dataclass(kw_only=True)
class CvtWeights:
    """The weights of a CvT for images.

    Attributes:
        layout, norm, head, normalisation, heads, not_loaded, remarks: as in `TransformerWeights`. `heads` is the number
            of the first stage.
        embeddings: one tree per stage, with the parameter names of `ConvolutionalEmbedding`.
        stages: for each stage a list of blocks. A block has 'attention' and 'mlp', trees with the parameter names of
            `ConvolutionalAttention` and `Mlp`.
        class_token: (d), of the last stage.
    """

    layout: str
    embeddings: list[dict]
    stages: list[list[dict]]
    class_token: np.ndarray
    norm: dict
    heads: int | None = None
    head: dict | None = None
    normalisation: tuple | None = None
    not_loaded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(kw_only=True)
class ResNetWeights:
    """The weights of a ResNet with bottleneck blocks for images.

    Attributes:
        layout, head, normalisation, not_loaded, remarks: as in `TransformerWeights`.
        stem: the first convolution, a tree with the parameter names of `Convolution`.
        stages: for each stage a list of blocks, trees with the parameter names of `Bottleneck`.
    """

    layout: str
    stem: dict
    stages: list[list[dict]]
    head: dict | None = None
    normalisation: tuple | None = None
    not_loaded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


Weights = TransformerWeights | SwinWeights | CvtWeights | ResNetWeights


@dataclass
class ArrayReader:
    """Reads the arrays of a weights file by name and records which arrays have been read.

    Attributes:
        arrays: name in the file -> array.
        prefix: the prefix of all names that are passed to this reader.
        metadata: the content of config.json and preprocessor_config.json beside the file.
        used: the names in the file that have been read.
    """

    arrays: dict[str, np.ndarray]
    prefix: str = ""
    metadata: dict = field(default_factory=dict)
    used: set = field(default_factory=set)

    def __contains__(self, name):
        return self.prefix + name in self.arrays

    def __getitem__(self, name) -> np.ndarray:
        name = self.prefix + name
        if name not in self.arrays:
            raise ConfigError(f"the array {name!r} is missing")
        self.used.add(name)
        return np.asarray(self.arrays[name], np.float32)

    def get(self, name) -> np.ndarray | None:
        """Returns the array, or None if the file does not have it."""
        return self[name] if name in self else None

    def shaped(self, name, shape) -> np.ndarray:
        """Returns the array. Raises ConfigError if it has another shape, which NumPy would broadcast or reshape."""
        array = self[name]
        require(
            array.shape == shape,
            f"the array {self.prefix + name!r} has the shape {array.shape}, where its layout has {shape}",
        )
        return array

    def number(self, field: str, first: bool = False) -> int | None:
        """Returns a number of `metadata`, such as 'num_frames', or None if `metadata` does not have it.

        Args:
            field: the name of the number.
            first: whether the first of a list of numbers is returned.
        Raises:
            ConfigError: the value is not a positive integer.
        """
        value = self.metadata.get(field)
        if first and isinstance(value, list) and value:
            value = value[0]
        require(
            value is None or type(value) is int and 0 < value <= _LARGEST_NUMBER,
            f"{field}={shown(value)} in the config.json beside the file must be a positive integer",
        )
        return value

    def first(self, names) -> np.ndarray | None:
        """Returns the first of several equal arrays that the file has, or None. All of them count as read."""
        found = [self.get(name) for name in names]
        return next((array for array in found if array is not None), None)

    def with_prefix(self, prefix: str) -> "ArrayReader":
        """Returns a reader with another prefix. Both share the record of which arrays have been read."""
        return ArrayReader(self.arrays, prefix, self.metadata, self.used)

    def layer_count(self, pattern) -> int:
        """Returns the number of layers. The group in `pattern` matches the number of a layer in the name of an array.

        Raises:
            ConfigError: the layers are not numbered 0, 1, 2, ...
        """
        pattern = re.escape(self.prefix) + pattern
        numbers = {int(match[1]) for name in self.arrays if (match := re.match(pattern, name))}
        if numbers != set(range(len(numbers))):
            raise ConfigError(f"the layers {shown(sorted(numbers))} are not numbered from 0 on")
        require(len(numbers) <= _MOST_LAYERS, f"it has {len(numbers)} layers, and at most {_MOST_LAYERS} are read")
        return len(numbers)

    def stage_depths(self, stages: str, layers: str) -> list[int]:
        """Returns the number of layers of each stage.

        Args:
            stages, layers: patterns. Layer j of stage i has the names `{stages}{i}{layers}{j}.`.
        Raises:
            ConfigError: as `layer_count`.
        """
        count = self.layer_count(rf"{stages}(\d+)\.")
        return [self.layer_count(rf"{stages}{i}{layers}(\d+)\.") for i in range(count)]

    def unused(self) -> list[str]:
        """Returns the names of the arrays that have not been read."""
        return [name for name in self.arrays if name not in self.used]

    def mark_pretraining_arrays(self) -> tuple[str, ...]:
        """Marks the arrays that only pretraining needs as read, and returns their names."""
        names = ("mask_token", "embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
        return tuple(name for name in names if self.get(name) is not None)

    # PyTorch has linear kernels (out, in) and convolution kernels (out, in, y, x). Ours are (in, out), (y, x, in, out).

    def linear(self, *names, scale=None):
        """Returns PyTorch's linear layers `names`, concatenated along the outputs and multiplied by `scale` (out).

        Raises:
            ConfigError: the arrays are not those of linear layers. NumPy would broadcast them.
        """
        kernel = np.concatenate([self[f"{name}.weight"].T for name in names], axis=1)
        bias = np.concatenate([self._bias(name) for name in names])
        for array in (bias, scale):
            require(
                array is None or kernel.ndim == 2 and array.shape == kernel.shape[1:],
                f"the arrays of the layer {self.prefix + names[0]!r} have the shapes {kernel.shape[::-1]} and "
                f"{np.shape(array)}, which do not belong together",
            )
        if scale is not None:
            kernel, bias = kernel * scale, bias * scale
        return {"kernel": kernel, "bias": bias}

    def _bias(self, name):
        """Returns the bias. It is zero for queries, keys or values if no layer of the file has such a bias."""
        last = name.rpartition(".")[2]
        if last in ("qkv", "query", "key", "value") and not any(
            other.endswith(f".{last}.bias") for other in self.arrays
        ):
            return np.zeros(len(self[f"{name}.weight"]), np.float32)
        return self[f"{name}.bias"]

    def norm(self, name):
        """Returns PyTorch's layer norm."""
        return {"scale": self[f"{name}.weight"], "bias": self[f"{name}.bias"]}

    def mlp(self, block, names, scale=None):
        """Returns the norm and the two linear layers of the MLP of a block, with the names of `Mlp`.

        Args:
            block: the prefix of the names of the block, without the last dot.
            names: the norm and the two layers, such as `TIMM_MLP`.
            scale: factors of the outputs, or None.
        """
        norm, wide, out = (f"{block}.{name}" for name in names)
        return {"norm": self.norm(norm), "wide": self.linear(wide), "out": self.linear(out, scale=scale)}

    def convolution(self, name):
        """Returns PyTorch's convolution."""
        return {"kernel": np.moveaxis(self[f"{name}.weight"], (1, 0), (-2, -1)), "bias": self[f"{name}.bias"]}

    def normalised_convolution(self, convolution, norm):
        """Returns PyTorch's convolution without bias and the batch norm after it, with the names of `Convolution`.

        In evaluation batch norm is a scale and a bias: weight / sqrt(var + eps), and bias - mean * scale.
        """
        kernel = np.moveaxis(self[f"{convolution}.weight"], (1, 0), (-2, -1))
        weight, bias, mean, variance = (
            self.shaped(f"{norm}.{part}", kernel.shape[-1:])
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        require(
            bool((variance >= 0).all()), f"the array {self.prefix + norm + '.running_var'!r} holds negative numbers"
        )
        self.get(f"{norm}.num_batches_tracked")  # read to mark it as used: only training uses this counter
        scale = weight / np.sqrt(variance + _BATCH_NORM_EPSILON)
        return {"convolution": {"kernel": kernel}, "scale": scale, "bias": bias - mean * scale}

    def merging(self, name):
        """Returns Swin's patch merging."""
        return {"norm": self.norm(f"{name}.norm"), "out": {"kernel": self[f"{name}.reduction.weight"].T}}

    def head(self, name):
        """Returns PyTorch's linear head, or None if the file has none."""
        return self.linear(name) if f"{name}.weight" in self and self[f"{name}.weight"].ndim == 2 else None
