"""The one encoder: a block is a tuple of sublayers, a stage a block repeated, a classifier a tuple of stages."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.attention.core import remat_attention
from vidformers.errors import require
from vidformers.layers.embedding import position_init
from vidformers.layers.linear import Linear
from vidformers.layers.tokens import Noise, Tokens, dropout
from vidformers.parallel.activations import constrain

# What the backward pass keeps of a layer: everything, everything but attention weights, the results of products with
# parameters, or only its input.
REMAT = ("none", "attention", "dots", "full")


class Block(nnx.Module):
    """Sublayers one after the other; each takes tokens and returns tokens, its residual included."""

    def __init__(self, sublayers: Sequence[nnx.Module]):
        self.sublayers = nnx.List(sublayers)

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        noises = [None] * len(self.sublayers) if noise is None else noise.split(len(self.sublayers))
        for sublayer, each in zip(self.sublayers, noises, strict=True):
            tokens = jax.tree.map(constrain, sublayer(tokens, each))
        return tokens


@dataclass(frozen=True)
class StageSpec:
    """A stage to build: `depth` blocks, each made by `block(rngs)`; the class token joins before it if `late_class`."""

    block: Callable[[nnx.Rngs], Block]
    depth: int
    late_class: bool = False


class Stage(nnx.Module):
    """`depth` equal blocks, their parameters stacked along axis 0, run by a scan.

    Args:
        remat: one of `REMAT`, what the backward pass keeps of a block.
        unroll: blocks in one step of the scan; `depth` or more is a plain loop.
    """

    def __init__(self, spec: StageSpec, *, remat: str = "none", unroll: int = 1, rngs: nnx.Rngs):
        require(remat in REMAT, f"model.remat={remat!r} must be one of {', '.join(REMAT)}.")
        require(unroll >= 1, f"model.unroll={unroll} must be at least 1.")
        self.depth, self.remat, self.unroll = spec.depth, remat, min(unroll, spec.depth)
        self.layer_loop = None  # another way through the layers, as `layerwise` gives it one
        self.layers = nnx.vmap(lambda key: spec.block(nnx.Rngs(key)))(jax.random.split(rngs.params(), spec.depth))

    def __call__(self, tokens: Tokens, noise: Noise | None = None) -> Tokens:
        """`noise` holds stacked keys and stochastic depth rates, one a block."""
        graph, parameters = nnx.split(self.layers)

        def run(tokens, layer):
            parameters, noise = layer
            with remat_attention() if self.remat == "attention" else nullcontext():
                return nnx.merge(graph, parameters)(tokens, noise), None

        if self.layer_loop is not None:
            return self.layer_loop(run, parameters, tokens, noise)
        if self.remat in ("dots", "full"):
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            run = jax.checkpoint(
                run, policy=dots if self.remat == "dots" else None, prevent_cse=self.unroll == self.depth
            )
        if self.unroll < self.depth:
            return jax.lax.scan(run, tokens, (parameters, noise), unroll=self.unroll)[0]
        # A loop knows which tokens of its last block nobody reads, and leaves out their gradient; and a single block
        # may change the shape of its tokens.
        for layer in _unstack((parameters, noise), self.depth):
            tokens, _ = run(tokens, layer)
        return tokens


def _unstack(tree, count: int) -> list:
    """A tree of arrays stacked along axis 0 as `count` trees; gradients come back by one concatenation."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part.squeeze(0) for part in jax.lax.split(leaf, [1] * count)] for leaf in leaves]
    return [structure.unflatten(each) for each in zip(*parts, strict=True)]


def stage_noises(stages, drop_path: float, keys):
    """The noise of each stage, of a key a stage; stochastic depth grows linearly over all blocks, from 0."""
    depths = [stage.depth for stage in stages]
    rates = jnp.linspace(0.0, drop_path, sum(depths))
    for key, depth in zip(keys, depths, strict=True):
        yield Noise(jax.random.split(key, depth), rates[:depth])
        rates = rates[depth:]


class Encoder(nnx.Module):
    """Embedding and stages: video (b t y x 3) -> class tokens (b c d), normalised.

    Args:
        embedding: makes patch tokens (b t y x d) of pixels; its `class_position` is added to the class token.
        stages: in order; a stage with `late_class` is preceded by the entry of the class token, which is otherwise
            there from the input on.
        width, out_width: d at the first stage and after the last (None: the same).
        class_per_frame: one class token a frame instead of one a clip.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        embedding,
        stages: Sequence[StageSpec],
        *,
        width: int,
        out_width: int | None = None,
        class_per_frame: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        unroll: int = 1,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        stages = [spec for spec in stages if spec.depth > 0]
        require(bool(stages), "The model needs at least one block: raise model.depth or model.class_blocks.")
        self.embedding, self.dropout, self.drop_path, self.dtype = embedding, dropout, drop_path, dtype
        self.class_per_frame = class_per_frame
        late = [i for i, spec in enumerate(stages) if spec.late_class]
        self.class_enters = late[0] if late else 0
        self.class_token = nnx.Param(position_init(rngs.params(), (width,)))
        self.stages = nnx.List(Stage(spec, remat=remat, unroll=unroll, rngs=rngs) for spec in stages)
        self.norm = nnx.LayerNorm(out_width or width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one clip: (t, y, x, 3)."""
        return self.embedding.shape

    def __call__(self, video, key=None):
        patches = constrain(self.embedding(video))
        tokens = Tokens(patches, jnp.zeros((patches.shape[0], 0, patches.shape[-1]), patches.dtype))
        noises = [None] * len(self.stages)
        if key is not None:
            first, *keys = jax.random.split(key, 1 + len(self.stages))
            tokens = tokens._replace(patches=dropout(patches, self.dropout, Noise(first, jnp.zeros(()))))
            noises = stage_noises(self.stages, self.drop_path, keys)
        for i, (stage, noise) in enumerate(zip(self.stages, noises, strict=True)):
            if i == self.class_enters:
                tokens = tokens._replace(class_tokens=self.initial_class_tokens(tokens.patches))
            tokens = stage(tokens, noise)
        return self.norm(tokens.class_tokens)

    def initial_class_tokens(self, patches):
        """The class tokens (b c d) that join patches (b t y x d)."""
        b, t, _, _, d = patches.shape
        token = (self.class_token[...] + self.embedding.class_position()).astype(self.dtype)
        return jnp.broadcast_to(token, (b, t if self.class_per_frame else 1, d))


class FramewiseEncoder(nnx.Module):
    """An encoder of single frames, run over all frames of a clip: video (b t y x 3) -> features of frames (b t d).

    Args:
        encoder: of clips of one frame, (b 1 y x 3) -> (b 1 d).
        frames: t.
        at_once: frames of each clip in one run of it in evaluation, so that memory does not grow with t; None is all.
    """

    def __init__(self, encoder, frames: int, at_once: int | None = None):
        require(at_once is None or at_once >= 1, f"model.frames_at_once={at_once} must be at least 1.")
        self.encoder, self.shape, self.at_once = encoder, (frames, *encoder.shape[1:]), at_once

    def __call__(self, video, key=None):
        b, t = video.shape[:2]
        if self.at_once is None or key is not None:
            return self.encoder(video.reshape(b * t, 1, *video.shape[2:]), key).reshape(b, t, -1)
        features = jax.lax.map(
            lambda frames: self.encoder(frames[:, None])[:, 0],
            jnp.moveaxis(video, 1, 0),
            batch_size=min(self.at_once, t),
        )  # and not along rows, which devices have apart
        return jnp.moveaxis(features, 0, 1)


class MeanReadout(nnx.Module):
    """(b c d) -> (b d): the mean over the class tokens."""

    def __call__(self, classes, key=None, index=None):
        return classes.mean(axis=1)


class Classifier(nnx.Module):
    """An encoder, a readout of its class tokens, and a linear head.

    Args:
        encoder: video (b t y x 3), key -> (b c d), of `shape`.
        readout: (b c d), key, index -> (b d).
        width: d that the readout gives.
    Calling it takes video (b t y x 3), in training a key, and for models that ask for it the index (b t) of each frame
    in its video; it returns float32 logits (b, num_classes), or raises ConfigError for a clip of another shape.
    """

    def __init__(self, encoder, readout=None, *, width: int, num_classes: int, rngs: nnx.Rngs):
        require(num_classes >= 1, f"model.num_classes={num_classes} must be at least 1.")
        self.encoder, self.readout = encoder, readout or MeanReadout()
        self.head = Linear(width, num_classes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one clip: (t, y, x, 3)."""
        return self.encoder.shape

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def __call__(self, video, key=None, index=None):
        return self.head(self.features(video, key, index))

    def features(self, video, key=None, index=None):
        """Video (b t y x 3) -> what the head reads, (b d) in float32."""
        require(
            video.shape[1:] == self.shape,
            f"The model takes clips of shape {self.shape} (t y x c), not {video.shape[1:]}.",
        )
        first, second = (None, None) if key is None else jax.random.split(key)
        classes = self.encoder(video, first)
        return self.readout(classes.astype(jnp.promote_types(classes.dtype, jnp.float32)), second, index)
