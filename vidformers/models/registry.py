"""The table of models: each is a sequence of stages, each stage a block of sublayers."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.core import SelfAttention, check_heads
from vidformers.attention.dictionary import Dictionary
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.shifted import Shifted, TokenShift
from vidformers.attention.time import Time
from vidformers.models.cvt import cvt
from vidformers.layers.embedding import Embedding, position_init
from vidformers.models.encoder import Block, Classifier, Encoder, FrameByFrame, Mlp, StageSpec, gelu, gelu_tanh
from vidformers.errors import ConfigError, require
from vidformers.models.resnet import ResNet
from vidformers.models.stat import stat
from vidformers.models.swin import swin
from vidformers.models.temporal import TemporalEncoder


class Size(NamedTuple):
    width: int
    heads: int
    depth: int


SIZES = {"Ti": Size(192, 3, 12), "S": Size(384, 6, 12), "B": Size(768, 12, 12), "L": Size(1024, 16, 24),
         "Swin-T": Size(96, 3, 12), "CvT-13": Size(64, 1, 13), "STAT": Size(192, 2, 15)}
GELUS = {"exact": gelu, "tanh": gelu_tanh}


@dataclass(kw_only=True)
class Parts:
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
        require(self.width > 0 and self.mlp_ratio > 0 and self.depth >= 0,
                "model.width and model.mlp_ratio must be positive, model.depth at least 0.")
        check_heads(self.width, self.heads)
        require(self.frames >= 1, f"model.frames={self.frames} must be at least 1.")
        require(len(self.mean) == len(self.std) == 3 and all(s > 0 for s in self.std),
                "model.mean and model.std must each hold three numbers, those of model.std above 0.")
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            require(0.0 <= rate < 1.0, f"model.{name}={rate} must be at least 0 and below 1.")
        require(self.dictionary >= 0, f"model.dictionary={self.dictionary} must be at least 0.")
        require(self.dtype in ("float32", "bfloat16", "float64"),
                f"model.dtype={self.dtype!r} must be float32, bfloat16 or float64.")
        self.compute = dict(dtype=jnp.dtype(self.dtype), dropout=self.dropout)

    def external(self, rngs) -> Dictionary | None:
        """A dictionary of the model's size, or None without one."""
        if not self.dictionary:
            return None
        return Dictionary(self.dictionary, self.width, self.heads, hybrid=self.hybrid, rngs=rngs)

    def attention(self, scheme, **options):
        """Makes self-attention with a dictionary of its own, or the one it is given to share."""
        def make(rngs, dictionary=None):
            return SelfAttention(scheme, self.width, self.heads, dictionary=dictionary or self.external(rngs),
                                 kernel=self.kernel, cosine_index=self.cosine_index, backend=self.backend,
                                 masked=self.masked, rngs=rngs, **options, **self.compute)
        return make

    def own_attention(self, what: str) -> None:
        """Raises ConfigError where a backend is asked for and attention is not `SelfAttention`."""
        require(self.backend in ("auto", "einsum"), f"model.backend={self.backend} is not one that {what} has.")

    def class_attention(self):
        return partial(ClassAttention, self.width, self.heads, **self.compute)

    def mlp(self, **options):
        return partial(Mlp, self.width, self.mlp_ratio * self.width, **options, **self.compute)

    @staticmethod
    def stage(depth, *sublayers, **options) -> StageSpec:
        return StageSpec(lambda rngs: Block([make(rngs=rngs) for make in sublayers]), depth, **options)

    def classifier(self, *stages, temporal, rngs: nnx.Rngs, readout=None, patch_frames=1, positions="separate",
                   **options) -> Classifier:
        embedding = Embedding(self.width, frames=self.frames, image_size=self.image_size, patch_size=self.patch_size,
                              temporal=temporal, mean=self.mean, std=self.std, patch_frames=patch_frames,
                              positions=positions, dtype=self.compute["dtype"], rngs=rngs)
        encoder = Encoder(embedding, stages, width=self.width, drop_path=self.drop_path, remat=self.remat,
                          unroll=self.unroll, rngs=rngs, **options, **self.compute)
        return Classifier(encoder, readout, width=self.width, num_classes=self.num_classes, rngs=rngs)


def vit(parts: Parts, *, rngs) -> Classifier:
    """ViT frame by frame, features of the frames' class tokens averaged. No temporal table: blind to order."""
    stage = parts.stage(parts.depth, parts.attention(Frame()), parts.mlp())
    return parts.classifier(stage, temporal=None, class_per_frame=True, rngs=rngs)


def timesformer(parts: Parts, *, starts_as_image: bool = True, rngs) -> Classifier:
    """TimeSformer, divided: time attention without the class token and with `temporal_fc`, then space, then MLP.

    Args:
        starts_as_image: the temporal table starts at zero, as `temporal_fc` does, as in its authors' code: at first the
            model is its image model. False draws the table, from which training without image weights learns sooner.
    """
    time = parts.attention(Time(), class_keys=False, class_queries=False, extra_projection=True)
    stage = parts.stage(parts.depth, time, parts.attention(Frame()), parts.mlp())
    return parts.classifier(stage, temporal=nnx.initializers.zeros if starts_as_image else position_init, rngs=rngs)


def joint(parts: Parts, *, patch_frames: int = 1, positions: str = "separate", gelu: str = "exact", rngs) -> Classifier:
    """Joint space-time attention over all tokens of the clip (MEViT eq. 3; TimeSformer's and ViViT's joint model).

    Args:
        patch_frames, positions: those of `Embedding`; ViViT has 2 and 'joint'.
        gelu: 'exact', or 'tanh', its approximation, as ViViT has it.
    Raises:
        ConfigError: patches that do not divide the clip, or an unknown choice.
    """
    require(gelu in GELUS, f"model.gelu={gelu!r} must be one of {', '.join(GELUS)}.")
    stage = parts.stage(parts.depth, parts.attention(Joint()), parts.mlp(activation=GELUS[gelu]))
    return parts.classifier(stage, temporal=position_init, patch_frames=patch_frames, positions=positions, rngs=rngs)


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
    early = class_blocks == 0  # the class token is there while patches attend to each other
    space = parts.attention(Frame(), class_keys=early, class_queries=early)
    motion = parts.attention(Motion(block_size), class_keys=early and class_in_motion,
                             class_queries=early and class_queries_motion, extra_projection=temporal_fc)
    both = (motion, space) if order == "motion_space" else (space, motion)
    return parts.classifier(
        parts.stage(parts.depth - motion_blocks, space, parts.mlp()),
        parts.stage(motion_blocks, *both, parts.mlp()),
        parts.stage(class_blocks, parts.class_attention(), parts.mlp(patches=False), late_class=True),
        temporal=position_init, rngs=rngs)


def havit(parts: Parts, *, attention: str = "divided", class_blocks: int = 2, class_token: str = "late",
          temporal_fc: bool = False, share_dictionary: bool = False, rngs) -> Classifier:
    """HaViT: hybrid attention, of patches to patches and to a dictionary of external tokens, then class attention.

    The paper's size of the dictionary, `Parts.dictionary`, and its number of class-attention layers are unknown: 112
    and 2 agree with the parameters of its Table 6 (26.4 M joint, 34.5 M divided at width 384).

    Args:
        attention: 'divided', time then space, or 'joint'; with `Parts.kernel` relu or cosine, joint attention is the
            paper's linear activation or cosine re-weighting (Table 6).
        class_blocks: class-attention layers after the `depth` hybrid blocks (eq. 8, 9).
        class_token: 'late', entering with class attention (sec. 3.3), or 'input', a key from the start (eq. 1).
        temporal_fc: TimeSformer's extra projection after the time attention.
        share_dictionary: one dictionary a block for its two attentions, rather than one each.
    Raises:
        ConfigError: an unknown choice, or a late class token without class attention.
    """
    require(attention in ("divided", "joint"), f"model.attention={attention!r} must be divided or joint.")
    require(class_token in ("late", "input"), f"model.class_token={class_token!r} must be late or input.")
    require(class_blocks >= (class_token == "late"),
            f"model.class_blocks={class_blocks} must be at least {int(class_token == 'late')} with "
            f"model.class_token={class_token}.")
    require(not temporal_fc or attention == "divided", "model.temporal_fc=True needs model.attention=divided.")
    early = class_token == "input"
    whole = parts.attention(Frame() if attention == "divided" else Joint(), class_keys=early, class_queries=early)
    time = parts.attention(Time(), class_keys=early, class_queries=False, extra_projection=temporal_fc)
    attentions = (time, whole) if attention == "divided" else (whole,)

    def block(rngs):
        shared = parts.external(rngs) if share_dictionary else None
        return Block([*(make(rngs, shared) for make in attentions), parts.mlp()(rngs=rngs)])

    return parts.classifier(
        StageSpec(block, parts.depth),
        parts.stage(class_blocks, parts.class_attention(), parts.mlp(patches=False), late_class=not early),
        temporal=position_init, rngs=rngs)


def msca(parts: Parts, *, direction: str = "heads", moved: str = "KV", before: int = 1, after: int = 1,
         shifted_blocks: int | None = None, boundary: str = "keep", rngs) -> Classifier:
    """MSCA: a frame-wise ViT in which some heads or patches attend to the neighbouring frames. No temporal table.

    Args:
        direction: 'heads' (Tables 1-3) or 'patches' (Tables 4 and 5).
        moved: which of queries, keys and values come from the neighbour: Q, K, V, QK, QV, KV or QKV (Tables 2, 5).
        before, after: how many heads or tokens look at the frame before and after (h_b, h_f; N_b, N_f). Among tokens
            the class token is the first.
        shifted_blocks: m, the last so many blocks (Table 3); None is all. The others attend inside their frame.
        boundary: what stands for the frame before the first and after the last: 'keep', 'zero' or 'wrap'. The paper
            does not say; TokenShift's code, which it builds on, takes zeros.
    Raises:
        ConfigError: more heads or tokens shifted than there are, more shifted blocks than blocks, an unknown choice.
    """
    attention = Shifted(direction, moved, before, after, boundary)
    count = parts.heads if direction == "heads" else 1 + (parts.image_size // parts.patch_size) ** 2
    require(before + after <= count,
            f"model.before={before} and model.after={after} are more than the {count} {direction} there are.")
    blocks = parts.depth if shifted_blocks is None else shifted_blocks
    require(0 <= blocks <= parts.depth,
            f"model.shifted_blocks={shifted_blocks} must be between 0 and model.depth={parts.depth}.")
    return parts.classifier(
        parts.stage(parts.depth - blocks, parts.attention(Frame()), parts.mlp()),
        parts.stage(blocks, parts.attention(attention), parts.mlp()),
        temporal=None, class_per_frame=True, rngs=rngs)


def tokenshift(parts: Parts, *, fold: int = 4, boundary: str = "zero", rngs) -> Classifier:
    """TokenShift: a frame-wise ViT whose class tokens exchange channels with their neighbours twice a block.

    Args:
        fold: 1/fold of the channels come from the frame before, as many from the frame after.
        boundary: as of `msca`.
    """
    shift = partial(TokenShift, parts.width, fold=fold, boundary=boundary)
    stage = parts.stage(parts.depth, shift, parts.attention(Frame()), shift, parts.mlp())
    return parts.classifier(stage, temporal=None, class_per_frame=True, rngs=rngs)


def vtn(parts: Parts, *, backbone: str = "vit", depths: tuple[int, ...] = (3, 4, 6, 3), stem: int = 64,
        temporal_depth: int = 3, window: tuple[int, ...] = (18,), tie_global: bool = False,
        temporal_dropout: float = 0.1, head_dropout: float = 0.5, frames_at_once: int | None = None,
        rngs) -> Classifier:
    """VTN: a backbone frame by frame, then a Longformer over the features of frames, any number of them.

    `Parts.size`, `width`, `heads` and `depth` are those of the ViT, and `width` and `heads` of the layers over time.

    Args:
        backbone: 'vit', its class token, or 'resnet' (see `ResNet`, which `depths` and `stem` are of).
        temporal_depth, window, tie_global, temporal_dropout, head_dropout: see `TemporalEncoder`.
        frames_at_once: frames of a clip that the backbone takes in one go in evaluation; memory grows with this.
    Raises:
        ConfigError: an unknown backbone, or what `TemporalEncoder` and `ResNet` refuse.
    """
    require(backbone in ("vit", "resnet"), f"model.backbone={backbone!r} must be vit or resnet.")
    require(parts.kernel == "softmax", f"model.kernel={parts.kernel} is not one that VTN's window attention has.")
    if backbone != "vit":
        parts.own_attention("VTN's window attention")
    if backbone == "vit":
        encoder = vit(replace(parts, frames=1), rngs=rngs).encoder
    else:
        encoder = ResNet(frames=1, image_size=parts.image_size, width=parts.width, mean=parts.mean, std=parts.std,
                         depths=depths, stem=stem, dtype=parts.compute["dtype"], rngs=rngs)
    readout = TemporalEncoder(
        parts.width, parts.heads, depth=temporal_depth, window=window, mlp_ratio=parts.mlp_ratio,
        tie_global=tie_global, make_dictionary=parts.external, dropout=temporal_dropout, head_dropout=head_dropout,
        remat=parts.remat, unroll=parts.unroll, dtype=parts.compute["dtype"], masked=parts.masked, rngs=rngs)
    return Classifier(FrameByFrame(encoder, parts.frames, frames_at_once), readout, width=parts.width,
                      num_classes=parts.num_classes, rngs=rngs)


MODELS = {"vit": vit, "timesformer": timesformer, "joint": joint, "mevit": mevit, "havit": havit, "msca": msca,
          "tokenshift": tokenshift, "vtn": vtn, "swin": swin, "cvt": cvt, "stat": stat}
WHOLE_CLIPS = ("cvt", "stat")  # those that keep the frames of a clip on one device
# The shared fields whose defaults are other ones.
DEFAULTS = {"swin": dict(size="Swin-T", patch_size=4), "cvt": dict(size="CvT-13", patch_size=4),
            "stat": dict(size="STAT", patch_size=8)}


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
    parts = Parts(**DEFAULTS.get(name, {}) | {key: value for key, value in options.items() if key in shared})
    return MODELS[name](parts, rngs=rngs, **{key: value for key, value in options.items() if key in own})
