"""The fields that all models share, and the sublayers made to them."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import SelfAttention, check_heads
from vidformers.attention.dictionary import Dictionary
from vidformers.errors import require
from vidformers.layers.embedding import Embedding
from vidformers.layers.mlp import Mlp
from vidformers.models.encoder import Block, Classifier, Encoder, StageSpec


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


@dataclass(kw_only=True)
class ModelConfig:
    """The fields all models share, and the sublayers and classifier made to them.

    `size` names a row of `SIZES`; `width`, `heads` and `depth` replace a number of it. `dictionary` is the number of
    external tokens that every self-attention reads, `hybrid` how (see `Dictionary`); `kernel`, `cosine_index` and
    `backend` are those of `SelfAttention`. Class attention has none of them. `masked` runs every attention as its slow
    definition (tests). The other fields are those of `Embedding`, `Stage` and `Classifier`.
    """

    num_classes: int
    frames: int = 8
    image_size: int = 224
    patch_size: int = 16
    size: str = "B"
    width: int | None = None
    heads: int | None = None
    depth: int | None = None
    mlp_ratio: int = 4
    dictionary: int = 0
    hybrid: str = "combined"
    kernel: str = "softmax"
    cosine_index: str = "sequence"
    backend: str = "auto"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    masked: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        require(self.size in SIZES, f"model.size={self.size!r} must be one of {', '.join(SIZES)}.")
        width, heads, depth = SIZES[self.size]
        self.width = width if self.width is None else self.width
        self.heads = heads if self.heads is None else self.heads
        self.depth = depth if self.depth is None else self.depth
        require(
            self.width > 0 and self.mlp_ratio > 0 and self.depth >= 0,
            "model.width and model.mlp_ratio must be positive, model.depth at least 0.",
        )
        check_heads(self.width, self.heads)
        require(self.frames >= 1, f"model.frames={self.frames} must be at least 1.")
        require(
            len(self.mean) == len(self.std) == 3 and all(s > 0 for s in self.std),
            "model.mean and model.std must each hold three numbers, those of model.std above 0.",
        )
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            require(0.0 <= rate < 1.0, f"model.{name}={rate} must be at least 0 and below 1.")
        require(self.dictionary >= 0, f"model.dictionary={self.dictionary} must be at least 0.")
        require(
            self.dtype in ("float32", "bfloat16", "float64"),
            f"model.dtype={self.dtype!r} must be float32, bfloat16 or float64.",
        )
        self.compute = dict(dtype=jnp.dtype(self.dtype), dropout=self.dropout)

    def make_dictionary(self, rngs) -> Dictionary | None:
        """A dictionary of the model's size, or None without one."""
        if not self.dictionary:
            return None
        return Dictionary(self.dictionary, self.width, self.heads, hybrid=self.hybrid, rngs=rngs)

    def attention(self, scheme, **options):
        """Makes self-attention with a dictionary of its own, or the one it is given to share."""

        def make(rngs, dictionary=None):
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
                **self.compute,
            )

        return make

    def require_einsum_backend(self, what: str) -> None:
        """Raises ConfigError where a backend is asked for and attention is not `SelfAttention`."""
        require(self.backend in ("auto", "einsum"), f"model.backend={self.backend} is not one that {what} has.")

    def class_attention(self):
        return partial(ClassAttention, self.width, self.heads, **self.compute)

    def mlp(self, **options):
        return partial(Mlp, self.width, self.mlp_ratio * self.width, **options, **self.compute)

    @staticmethod
    def stage(depth, *sublayers, **options) -> StageSpec:
        return StageSpec(lambda rngs: Block([make(rngs=rngs) for make in sublayers]), depth, **options)

    def classifier(
        self, *stages, temporal, rngs: nnx.Rngs, readout=None, patch_frames=1, positions="separate", **options
    ) -> Classifier:
        embedding = Embedding(
            self.width,
            frames=self.frames,
            image_size=self.image_size,
            patch_size=self.patch_size,
            temporal=temporal,
            mean=self.mean,
            std=self.std,
            patch_frames=patch_frames,
            positions=positions,
            dtype=self.compute["dtype"],
            rngs=rngs,
        )
        encoder = Encoder(
            embedding,
            stages,
            width=self.width,
            drop_path=self.drop_path,
            remat=self.remat,
            unroll=self.unroll,
            rngs=rngs,
            **options,
            **self.compute,
        )
        return Classifier(encoder, readout, width=self.width, num_classes=self.num_classes, rngs=rngs)
