"""The table of models: each is a sequence of stages, each stage a block of sublayers."""

from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import SelfAttention, check_heads
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.time import Time
from vidformers.embedding import Embedding, position_init
from vidformers.encoder import Block, Classifier, Mlp, StageSpec
from vidformers.errors import ConfigError, require


class Size(NamedTuple):
    width: int
    heads: int
    depth: int


SIZES = {"Ti": Size(192, 3, 12), "S": Size(384, 6, 12), "B": Size(768, 12, 12), "L": Size(1024, 16, 24)}


@dataclass(kw_only=True)
class Parts:
    """The fields all models share, and the sublayers and classifier made to them.

    `size` names a row of `SIZES`; `width`, `heads` and `depth` replace a number of it. `masked` runs every attention
    as its slow definition (tests). The other fields are those of `Embedding`, `Stage` and `Classifier`.
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
        require(self.width > 0 and self.mlp_ratio > 0 and self.depth >= 0,
                "model.width and model.mlp_ratio must be positive, model.depth at least 0.")
        check_heads(self.width, self.heads)
        require(self.dtype in ("float32", "bfloat16", "float64"),
                f"model.dtype={self.dtype!r} must be float32, bfloat16 or float64.")
        self.compute = dict(dtype=jnp.dtype(self.dtype), dropout=self.dropout)

    def attention(self, scheme, **options):
        return partial(SelfAttention, scheme, self.width, self.heads, masked=self.masked, **options, **self.compute)

    def class_attention(self):
        return partial(ClassAttention, self.width, self.heads, **self.compute)

    def mlp(self, **options):
        return partial(Mlp, self.width, self.mlp_ratio * self.width, **options, **self.compute)

    @staticmethod
    def stage(depth, *sublayers, **options) -> StageSpec:
        return StageSpec(lambda rngs: Block([make(rngs=rngs) for make in sublayers]), depth, **options)

    def classifier(self, *stages, temporal, rngs: nnx.Rngs, **options) -> Classifier:
        embedding = Embedding(self.width, frames=self.frames, image_size=self.image_size, patch_size=self.patch_size,
                              temporal=temporal, mean=self.mean, std=self.std, dtype=self.compute["dtype"], rngs=rngs)
        return Classifier(embedding, stages, width=self.width, num_classes=self.num_classes, drop_path=self.drop_path,
                          remat=self.remat, unroll=self.unroll, rngs=rngs, **options, **self.compute)


def vit(parts: Parts, *, rngs) -> Classifier:
    """ViT frame by frame, features of the frames' class tokens averaged. No temporal table: blind to order."""
    stage = parts.stage(parts.depth, parts.attention(Frame()), parts.mlp())
    return parts.classifier(stage, temporal=None, class_per_frame=True, rngs=rngs)


def timesformer(parts: Parts, *, rngs) -> Classifier:
    """TimeSformer, divided: time attention without the class token and with `temporal_fc`, then space, then MLP.

    `temporal_fc` and the temporal table start at zero, as in its authors' code: at first it is an image model.
    """
    time = parts.attention(Time(), class_keys=False, class_queries=False, extra_projection=True)
    stage = parts.stage(parts.depth, time, parts.attention(Frame()), parts.mlp())
    return parts.classifier(stage, temporal=nnx.initializers.zeros, rngs=rngs)


def joint(parts: Parts, *, rngs) -> Classifier:
    """Joint space-time attention over all tokens of the clip (MEViT eq. 3; TimeSformer's and ViViT's joint model)."""
    stage = parts.stage(parts.depth, parts.attention(Joint()), parts.mlp())
    return parts.classifier(stage, temporal=position_init, rngs=rngs)


def mevit(parts: Parts, *, block_size: int = 2, motion_blocks: int = 7, class_blocks: int = 1,
          order: str = "motion_space", class_in_motion: bool = True, class_queries_motion: bool = False,
          temporal_fc: bool = False, rngs) -> Classifier:
    """MEViT: `depth` self-attention blocks, the last `motion_blocks` with motion attention, then class attention.

    With `class_blocks` > 0 the class token enters after the self-attention blocks (MEViT sec. 3.4); with 0 it is there
    from the input on, as in the baseline of the paper's Tables 1 and 3.

    Args:
        block_size: M, the side of a motion block in patches (Table 1).
        motion_blocks: L_t (Table 3); `depth` minus L_t blocks at the bottom attend in space only.
        class_blocks: class-attention layers (Table 2: 9+3, 10+2, 11+1, 12+1).
        order: 'motion_space' as the equations apply, or 'space_motion' as the end of sec. 3 says. With the latter, no
            class_blocks and no class query in motion, nothing reads what the last motion sublayer writes.
        class_in_motion: the class token is a key of motion attention (eq. 8); False as TimeSformer's code.
        class_queries_motion: it also attends there; with M as large as the grid that is complete joint attention.
        temporal_fc: TimeSformer's extra projection after the motion attention, not in the equations.
    Raises:
        ConfigError: more motion blocks than blocks, a negative count, or an unknown order.
    """
    require(0 <= motion_blocks <= parts.depth,
            f"model.motion_blocks={motion_blocks} must be between 0 and model.depth={parts.depth}.")
    require(class_blocks >= 0, f"model.class_blocks={class_blocks} must be at least 0.")
    require(order in ("motion_space", "space_motion"),
            f"model.order={order!r} must be motion_space or space_motion.")
    require(class_in_motion or not class_queries_motion,
            "model.class_queries_motion=True needs model.class_in_motion=True.")
    space = parts.attention(Frame())
    motion = parts.attention(Motion(block_size), class_keys=class_in_motion, class_queries=class_queries_motion,
                             extra_projection=temporal_fc)
    both = (motion, space) if order == "motion_space" else (space, motion)
    return parts.classifier(
        parts.stage(parts.depth - motion_blocks, space, parts.mlp()),
        parts.stage(motion_blocks, *both, parts.mlp()),
        parts.stage(class_blocks, parts.class_attention(), parts.mlp(patches=False), late_class=True),
        temporal=position_init, rngs=rngs)


MODELS = {"vit": vit, "timesformer": timesformer, "joint": joint, "mevit": mevit}


def build(name: str, *, rngs: nnx.Rngs, **options) -> Classifier:
    """The model `name` of `MODELS` with the fields of `Parts` and its own, as in `build('mevit', num_classes=10)`.

    Raises:
        ConfigError: an unknown model, an unknown field, or a geometry that cannot work.
    """
    require(name in MODELS, f"model.name={name!r} must be one of {', '.join(MODELS)}.")
    shared = {field.name for field in fields(Parts)}
    own = set(MODELS[name].__kwdefaults__ or {})
    for field in options:
        if field not in shared | own:
            raise ConfigError(f"model.{field} is not a field of the model {name!r}.")
    parts = Parts(**{key: value for key, value in options.items() if key in shared})
    return MODELS[name](parts, rngs=rngs, **{key: value for key, value in options.items() if key in own})
