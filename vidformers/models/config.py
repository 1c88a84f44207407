"""The fields that all models share, and methods that make sublayers, stages and classifiers with these fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypedDict

import jax.numpy as jnp
from flax import nnx

from input_pipeline.sizes import MAX_PIXELS
from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import SelfAttention
from vidformers.attention.dictionary import HYBRIDS, Dictionary
from vidformers.attention.scheme import Scheme
from vidformers.errors import require
from vidformers.layers.embedding import Embedding
from vidformers.layers.linear import check_heads
from vidformers.layers.mlp import Mlp
from vidformers.models.encoder import Block, Classifier, Encoder, StageSpec

MakeModule = Callable[..., nnx.Module]  # called with rngs=nnx.Rngs


class Size(NamedTuple):
    width: int
    heads: int
    depth: int


SIZES = {
    "Ti": Size(192, 3, 12),
    "S": Size(384, 6, 12),
    "B": Size(768, 12, 12),
    "L": Size(1024, 16, 24),
    "Swin-T": Size(96, 3, 12),
    "CvT-13": Size(64, 1, 13),
    "STAT": Size(192, 2, 15),
}

MAX_DEPTH = 1000  # blocks of a stage
# Of the shared fields. Larger models cannot be meant, and take minutes to describe.
_LARGEST = {"width": 131_072, "depth": MAX_DEPTH, "mlp_ratio": 1024, "dictionary": 1_000_000, "num_classes": 10_000_000}


class SublayerOptions(TypedDict):
    """Keyword arguments that every sublayer takes."""

    dtype: jnp.dtype
    dropout: float


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """Optional registry settings of a model.

    Attributes:
        defaults: the shared fields whose defaults differ from those of `ModelConfig.from_size`.
        frames_on_one_device: whether all frames of a clip must be on one device, so that mesh.context must be 1. With
            jaxlib 0.10, XLA computes wrong gradients of the convolutions of CvT and STAT if the frame axis is sharded.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    frames_on_one_device: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The fields that all models share. `from_size` makes it from the section `model` of a config.

    `attention`, `class_attention` and `mlp` return factories: make(rngs=rngs) creates one sublayer. `stage` combines
    factories to the spec of a stage, and `classifier` builds the model from specs.

    Attributes:
        width: d, the width of a token.
        heads: attention heads; divides `width`.
        depth: number of blocks.
        mlp_ratio: hidden width of an MLP divided by d.
        patch_size: side of a patch in pixels.
        dictionary: number of learned keys and values of every self-attention sublayer's `Dictionary` (HaViT's external
            tokens). 0: no dictionary.
        hybrid: 'combined', 'simplified', 'multi_view' or 'split_heads': how a `Dictionary` is combined with the clip.
        dictionary_scale: standard deviation of the entries of a `Dictionary` at the start.
        kernel, cosine_index, backend: those of `SelfAttention`. Class attention does not have these options.
        dropout: dropout rate of the embedded patches and of every residual branch.
        drop_path: stochastic depth of the last block. It grows linearly from 0 at the first block.
        dtype: the type of activations. Parameters are float32.
        remat: what the backward pass rematerialises: 'none', 'attention', 'dots' or 'full' (see `encoder.REMAT`).
        unroll: that of `Stage`.
        mean, std: normalisation of the three colour channels, whose range is 0 to 1.
        frames: frames of a clip.
        image_size: side of a frame in pixels.
        num_classes: number of logits.
        masked: runs every attention layer in its masked form, the slow reference in tests.
    """

    width: int
    heads: int
    depth: int
    mlp_ratio: int = 4
    patch_size: int = 16
    dictionary: int = 0
    hybrid: str = "combined"
    dictionary_scale: float = 0.02
    kernel: str = "softmax"
    cosine_index: str = "sequence"
    backend: str = "auto"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int | str = "auto"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    frames: int = 8
    image_size: int = 224
    num_classes: int
    masked: bool = False

    @classmethod
    def from_size(
        cls,
        *,
        size: str = "B",
        width: int | None = None,
        heads: int | None = None,
        depth: int | None = None,
        **fields,
    ) -> "ModelConfig":
        """Returns a config with the width, heads and depth of the row `size` of `SIZES`.

        Args:
            width, heads, depth: replace the number of the row, unless None.
            **fields: the other attributes of `ModelConfig`.
        Raises:
            ConfigError: the size is unknown, or a field is out of range.
        """
        require(size in SIZES, f"model.size={size!r} must be one of {', '.join(SIZES)}.")
        row = SIZES[size]
        return cls(
            width=row.width if width is None else width,
            heads=row.heads if heads is None else heads,
            depth=row.depth if depth is None else depth,
            **fields,
        )

    def __post_init__(self):
        require(self.width > 0, f"model.width={self.width} must be positive.")
        require(self.mlp_ratio > 0, f"model.mlp_ratio={self.mlp_ratio} must be positive.")
        require(self.depth >= 0, f"model.depth={self.depth} must be at least 0.")
        check_heads(self.width, self.heads)
        require(self.frames >= 1, f"model.frames={self.frames} must be at least 1.")
        for name, most in _LARGEST.items():
            require(getattr(self, name) <= most, f"model.{name}={getattr(self, name)} must be at most {most:,}.")
        require(
            self.frames * self.image_size**2 <= MAX_PIXELS,
            f"model.frames={self.frames} of model.image_size={self.image_size} are more than {MAX_PIXELS:,} pixels. "
            f"Set model.frames to at most {MAX_PIXELS // max(self.image_size, 1) ** 2}.",
        )
        require(
            len(self.mean) == len(self.std) == 3 and all(s > 0 for s in self.std),
            f"model.mean={self.mean} and model.std={self.std} must hold three numbers each, model.std positive ones.",
        )
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            require(0.0 <= rate < 1.0, f"model.{name}={rate} must be at least 0 and below 1.")
        require(self.dictionary >= 0, f"model.dictionary={self.dictionary} must be at least 0.")
        require(self.hybrid in HYBRIDS, f"model.hybrid={self.hybrid!r} is unknown. Use one of {', '.join(HYBRIDS)}.")
        require(self.dictionary_scale >= 0, f"model.dictionary_scale={self.dictionary_scale} must be at least 0.")
        require(
            self.dtype in ("float32", "bfloat16", "float64"),
            f"model.dtype={self.dtype!r} must be float32, bfloat16 or float64.",
        )

    @property
    def sublayer_options(self) -> SublayerOptions:
        """The keyword arguments that every sublayer takes."""
        return SublayerOptions(dtype=jnp.dtype(self.dtype), dropout=self.dropout)

    def make_dictionary(self, rngs: nnx.Rngs, mlp_ratio: int = 0) -> Dictionary | None:
        """Returns a new dictionary with `self.dictionary` entries, or None for 0 entries."""
        if not self.dictionary:
            return None
        return Dictionary(
            self.dictionary,
            self.width,
            self.heads,
            hybrid=self.hybrid,
            scale=self.dictionary_scale,
            mlp_ratio=mlp_ratio,
            rngs=rngs,
        )

    def attention(self, scheme: Scheme, **options) -> Callable[..., SelfAttention]:
        """Returns make(rngs, dictionary=None), which creates a `SelfAttention` with these options.

        Sublayers that get the same dictionary share it. A sublayer that gets none creates its own.
        """

        def make(rngs: nnx.Rngs, dictionary: Dictionary | None = None) -> SelfAttention:
            return SelfAttention(
                scheme,
                self.width,
                self.heads,
                dictionary=dictionary or self.make_dictionary(rngs),
                kernel=self.kernel,
                cosine_index=self.cosine_index,
                backend=self.backend,
                masked=self.masked,
                rngs=rngs,
                **options,
                **self.sublayer_options,
            )

        return make

    def class_attention(self) -> Callable[..., ClassAttention]:
        """Returns make(rngs), which creates a `ClassAttention`."""
        return partial(ClassAttention, self.width, self.heads, **self.sublayer_options)

    def mlp(self, **options) -> Callable[..., Mlp]:
        """Returns make(rngs), which creates an `Mlp` with these options."""
        all_options: dict[str, Any] = {**options, **self.sublayer_options}
        return partial(Mlp, self.width, self.mlp_ratio * self.width, **all_options)

    @staticmethod
    def stage(depth: int, *sublayers: MakeModule, late_class: bool = False) -> StageSpec:
        """Returns the spec of `depth` blocks, each with the sublayers that these factories create.

        Args:
            depth: 0 leaves the stage out.
            late_class: whether the class token is appended at this stage instead of at the input.
        """
        return StageSpec(lambda rngs: Block([make(rngs=rngs) for make in sublayers]), depth, late_class)

    def classifier(
        self,
        *stages: StageSpec,
        temporal_init: nnx.Initializer | None,
        patch_frames: int = 1,
        positions: str = "separate",
        class_per_frame: bool = False,
        averages_before_norm: bool = False,
        rngs: nnx.Rngs,
    ) -> Classifier:
        """Returns a classifier of an `Embedding`, the stages and a linear head.

        Args:
            temporal_init: initialiser of the temporal position embedding, or None for a model without one.
            patch_frames: frames of a patch.
            positions: 'separate' position embeddings in space and time, or one 'joint' embedding; see `Embedding`.
            class_per_frame: whether each frame has its own class token, instead of one per clip. The head averages
                them.
            averages_before_norm: whether they are averaged before the final norm and not after it.
        """
        embedding = Embedding(
            self.width,
            frames=self.frames,
            image_size=self.image_size,
            patch_size=self.patch_size,
            temporal_init=temporal_init,
            mean=self.mean,
            std=self.std,
            patch_frames=patch_frames,
            positions=positions,
            dtype=self.sublayer_options["dtype"],
            rngs=rngs,
        )
        encoder = Encoder(
            embedding,
            stages,
            width=self.width,
            class_per_frame=class_per_frame,
            averages_before_norm=averages_before_norm,
            drop_path=self.drop_path,
            remat=self.remat,
            unroll=self.unroll,
            rngs=rngs,
            **self.sublayer_options,
        )
        return Classifier(encoder, width=self.width, num_classes=self.num_classes, rngs=rngs)
