"""The building blocks of all models: block, stage, encoder and classifier.

classifier:  encoder -> readout -> linear head
encoder:     embedding -> stage -> ... -> stage -> norm
stage:       depth x block, with stacked parameters
block:       sublayer -> ... -> sublayer, each with its residual

Axes: b clips, t frames, n patches of a frame, c class tokens, d width; y x rows and columns, of pixels in video.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.attention.core import remat_attention
from vidformers.attention.dictionary import Dictionary, SharedDictionary
from vidformers.errors import require
from vidformers.layers.embedding import unit_norm_init, warn_of_unit_range
from vidformers.layers.linear import Linear
from vidformers.layers.tokens import LayerRng, Tokens, dropout, split_rng
from vidformers.parallel.activations import has_context, shard_activations
from vidformers.parallel.state import split_layers
from vidformers.parallel.target import target_platform

# What the backward pass rematerialises in a block.
REMAT = (
    "none",  # nothing
    "attention",  # the attention weights
    "dots",  # everything except the products with parameters
    "full",  # everything, from the input of the block
)

AnyTokens = TypeVar("AnyTokens")  # `Tokens`, or another tree of arrays that the sublayers take


class Block(nnx.Module):
    """A sequence of sublayers. Each takes tokens and returns tokens, with its residual added."""

    def __init__(self, sublayers: Sequence[nnx.Module]):
        self.sublayers = nnx.List(sublayers)

    def __call__(self, tokens: AnyTokens, rng: LayerRng | None = None) -> AnyTokens:
        count = len(self.sublayers)
        for sublayer, sublayer_rng in zip(self.sublayers, split_rng(rng, count), strict=True):
            tokens = jax.tree.map(shard_activations, sublayer(tokens, sublayer_rng))
        return tokens


@dataclass(frozen=True)
class StageSpec:
    """A stage to build.

    Attributes:
        block: block(rngs) returns one block.
        depth: number of blocks. A stage of depth 0 is left out.
        late_class: whether the class token is appended at this stage instead of at the input.
        dictionaries: dictionaries(rngs) of the stage by name. All blocks share them: a sublayer with
            `SharedDictionary(name, ...)` reads the one of this name.
    """

    block: Callable[[nnx.Rngs], Block]
    depth: int
    late_class: bool = False
    dictionaries: Mapping[str, Callable[[nnx.Rngs], Dictionary | None]] = field(default_factory=dict)


class Stage(nnx.Module):
    """`depth` equal blocks. Their parameters are stacked along axis 0, and a scan runs them.

    The entries of dictionaries that all blocks share are outside the stack, in `dictionary`. The gradient of such an
    entry is the sum over the blocks.

    Args:
        remat: one of `REMAT`.
        unroll: blocks in one step of the scan. With `depth` or more, a plain loop replaces the scan. 'auto' is a plain
            loop on accelerators, where a scan copies what the backward pass needs to stacks and back, and 1 on CPUs,
            where the copies cost less than the longer compilation (benchmarks/NOTES.md).
    Raises:
        ConfigError: a value is unknown or out of range.
    """

    def __init__(self, spec: StageSpec, *, remat: str = "none", unroll: int | str = "auto", rngs: nnx.Rngs):
        require(remat in REMAT, f"model.remat={remat!r} must be one of {', '.join(REMAT)}.")
        # From the command line the number is text, since the field of a config has one type.
        is_number = isinstance(unroll, int) or unroll.isdecimal()
        require(
            unroll == "auto" or is_number and int(unroll) >= 1,
            f"model.unroll={unroll} must be auto or a number of at least 1.",
        )
        self.depth, self.remat, self.unroll = spec.depth, remat, int(unroll) if is_number else unroll
        # None, or a function run_layers(apply_layer, parameters, shared, tokens, rng) -> tokens that replaces the loop
        # over the layers. apply_layer(tokens, (parameters, rng), shared) runs one layer and returns (tokens, None), as
        # a scan expects. `shared` are the parameters that all layers share. Set by
        # `vidformers.training.update_in_backward`.
        self.run_layers = None
        self.layers = nnx.vmap(lambda key: spec.block(nnx.Rngs(key)))(jax.random.split(rngs.params(), spec.depth))
        self.dictionary = nnx.Dict({name: make(rngs) for name, make in spec.dictionaries.items()})

    def split_blocks(self):
        """Returns (make_block, parameters, shared), to run the blocks one by one.

        `make_block(parameters of one block, shared)` returns this block. `parameters` are those of all blocks, stacked
        along axis 0, and `shared` are the parameters that all blocks share.
        """
        graph, parameters = nnx.split(self.layers)
        shared_graph, shared = nnx.split(self.dictionary)

        def make_block(parameters, shared) -> Block:
            block = nnx.merge(graph, parameters)
            dictionaries = nnx.merge(shared_graph, shared)
            sublayers: Any = block.sublayers
            for sublayer in sublayers:
                if isinstance(place := getattr(sublayer, "dictionary", None), SharedDictionary):
                    sublayer.dictionary = dictionaries[place.name]
            return block

        return make_block, parameters, shared

    @property
    def is_loop(self) -> bool:
        """Whether a plain loop runs the blocks, and not a scan, in a program that is traced here."""
        return self._blocks_per_step >= self.depth

    @property
    def _blocks_per_step(self) -> int:
        if isinstance(self.unroll, int):
            return self.unroll
        return 1 if target_platform() == "cpu" else self.depth

    def __call__(self, tokens: AnyTokens, rng: LayerRng | None = None) -> AnyTokens:
        """Runs the blocks. The arrays of `rng` have one entry per block along axis 0."""
        make_block, parameters, shared = self.split_blocks()
        tokens = self._join(tokens)

        def run(tokens, layer, shared=shared):
            parameters, rng = layer
            with remat_attention() if self.remat == "attention" else nullcontext():
                return make_block(parameters, shared)(tokens, rng), None

        if self.run_layers is not None:
            return _split(self.run_layers(run, parameters, shared, tokens, rng))
        if self.remat in ("dots", "full"):
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            # prevent_cse is only needed outside of a scan.
            run = jax.checkpoint(run, policy=dots if self.remat == "dots" else None, prevent_cse=self.is_loop)
        if not self.is_loop:
            return _split(jax.lax.scan(run, tokens, (parameters, rng), unroll=self._blocks_per_step)[0])
        # A fully unrolled stage uses a loop and not scan(unroll=depth). In a loop, JAX skips the gradients of unused
        # outputs of the last block, such as patches that no class token reads. In a scan it cannot. A scan also
        # requires equal input and output shapes, and the block of a stage of depth 1 may change the shape.
        for i, layer in enumerate(_unstack((parameters, rng), self.depth)):
            # Split before the last block, so that the patches that it computes can be unused.
            tokens, _ = run(_split(tokens) if i == self.depth - 1 else tokens, layer)
        return tokens

    def _join(self, tokens):
        """Returns joined tokens (see `Tokens`) if all sublayers take them, and other tokens unchanged."""
        taken = {getattr(sublayer, "takes_joined", None) for sublayer in self.layers.sublayers} - {"any"}
        if len(taken) == 1 and isinstance(tokens, Tokens):
            # Context parallelism shards frames, so that they must stay an axis.
            groups = {"frame": tokens.grid[0], "clip": 0 if has_context() else 1, None: 0}[taken.pop()]
            if tokens.class_tokens.shape[1] == groups > 0:
                return tokens.join()
        return tokens


def _split(tokens):
    """Returns the tokens of which `Stage._join` made these."""
    return tokens.split() if isinstance(tokens, Tokens) and tokens.class_rows else tokens


def _unstack(tree, count: int) -> list:
    """Returns the `count` trees that are stacked along axis 0 of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    layers = zip(*map(split_layers, leaves), strict=True) if leaves else [()] * count
    return [jax.tree.unflatten(structure, layer) for layer in layers]


def stage_rngs(stages: Iterable[Stage], drop_path: float, random_keys) -> Iterator[LayerRng]:
    """Yields the `LayerRng` of each stage, with arrays that have one entry per block.

    `random_keys` has one key per stage. The stochastic depth rate grows linearly over the blocks of all stages, from 0
    to `drop_path`.
    """
    depths = [stage.depth for stage in stages]
    rates = jnp.linspace(0.0, drop_path, sum(depths))
    for key, depth in zip(random_keys, depths, strict=True):
        yield LayerRng(jax.random.split(key, depth), rates[:depth])
        rates = rates[depth:]


class Encoder(nnx.Module):
    """Embedding, stages and final norm: encoder(video (b t y x 3), key) -> class tokens (b c d).

    The argument `key` is the random key of a training step, or None in evaluation.

    Args:
        embedding: pixels -> patch tokens (b t n d) on its `grid`. Its `class_position()` is added to the class tokens.
        stages: specs in order. The class tokens are appended at the first stage with `late_class`, else at the input.
        width: d of the first stage.
        out_width: d after the last stage; None is `width`.
        class_per_frame: one class token per frame instead of one per clip.
        averages_before_norm: whether the final norm takes the mean of the class tokens, and c is 1.
        dropout: dropout rate of the embedded patches.
        drop_path: stochastic depth of the last block. It grows linearly from 0 at the first block.
    Raises:
        ConfigError: all stages are empty, or a value is out of range.
    """

    def __init__(
        self,
        embedding,
        stages: Sequence[StageSpec],
        *,
        width: int,
        out_width: int | None = None,
        class_per_frame: bool = False,
        averages_before_norm: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: str = "none",
        unroll: int | str = "auto",
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        stages = [spec for spec in stages if spec.depth > 0]
        require(bool(stages), "The model has no blocks. Raise model.depth or model.class_blocks.")
        self.embedding, self.dropout, self.drop_path, self.dtype = embedding, dropout, drop_path, dtype
        self.class_per_frame, self.averages_before_norm = class_per_frame, averages_before_norm
        late = [i for i, spec in enumerate(stages) if spec.late_class]
        self.class_token_stage = late[0] if late else 0
        self.class_token = nnx.Param(unit_norm_init(rngs.params(), (width,)))
        self.stages = nnx.List(Stage(spec, remat=remat, unroll=unroll, rngs=rngs) for spec in stages)
        self.norm = nnx.LayerNorm(out_width or width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of one clip, (t, y, x, 3)."""
        return self.embedding.shape

    def __call__(self, video, key=None):
        patches = shard_activations(self.embedding(video))
        no_class_tokens = jnp.zeros((patches.shape[0], 0, patches.shape[-1]), patches.dtype)
        tokens = Tokens(patches, no_class_tokens, self.embedding.grid)
        rng_per_stage: Iterable[LayerRng | None] = [None] * len(self.stages)
        if key is not None:
            input_key, *stage_keys = jax.random.split(key, 1 + len(self.stages))
            input_rng = LayerRng(input_key, jnp.zeros(()))  # no stochastic depth at the input
            tokens = tokens.replace(patches=dropout(patches, self.dropout, input_rng))
            rng_per_stage = stage_rngs(self.stages, self.drop_path, stage_keys)
        for i, (stage, rng) in enumerate(zip(self.stages, rng_per_stage, strict=True)):
            if i == self.class_token_stage:
                tokens = tokens.replace(class_tokens=self.initial_class_tokens(tokens.patches))
            tokens = stage(tokens, rng)
        return self.read(tokens)

    def read(self, tokens: Tokens):
        """Returns the output of the encoder (b c d) from the tokens after the last stage."""
        return self.norm(self.tokens_to_norm(tokens.class_tokens))

    def tokens_to_norm(self, class_tokens):
        """Returns the class tokens (b c d) after the last stage that the final norm takes."""
        if not self.averages_before_norm:
            return class_tokens
        return class_tokens.mean(axis=1, keepdims=True, dtype=jnp.promote_types(class_tokens.dtype, jnp.float32))

    def initial_class_tokens(self, patches):
        """Returns the class tokens (b c d) that are appended to patches (b t n d)."""
        b, t, _, d = patches.shape
        token = (self.class_token[...] + self.embedding.class_position()).astype(self.dtype)
        return jnp.broadcast_to(token, (b, t if self.class_per_frame else 1, d))


class FramewiseEncoder(nnx.Module):
    """Applies an encoder of single frames to every frame: video (b t y x 3) -> frame features (b t d).

    Args:
        encoder: clips of one frame (b 1 y x 3) -> (b 1 d).
        frames: t.
        at_once: frames of each clip that the encoder processes at once in evaluation, so that memory does not grow with
            t. None is all frames. Training always processes all frames at once: the backward pass needs the
            activations of all frames, so that a loop would save no memory.
    """

    def __init__(self, encoder, frames: int, at_once: int | None = None):
        require(at_once is None or at_once >= 1, f"model.frames_at_once={at_once} must be at least 1.")
        self.encoder, self.shape, self.at_once = encoder, (frames, *encoder.shape[1:]), at_once

    def __call__(self, video, key=None):
        b, t = video.shape[:2]
        if self.at_once is None or key is not None:
            return self._encode(video, key)
        # Maps over frames and not over the batch axis, which is sharded. A chunk joins the batch axis here and not by
        # lax.map's own `batch_size`, which uses vmap: JAX 0.10 cannot vmap cuDNN's attention with padding.
        size = min(self.at_once, t)
        whole = t - t % size
        chunks = video[:, :whole].reshape(b, -1, size, *video.shape[2:])
        features = jnp.moveaxis(jax.lax.map(self._encode, jnp.moveaxis(chunks, 1, 0)), 0, 1).reshape(b, whole, -1)
        return jnp.concatenate([features, self._encode(video[:, whole:])], axis=1) if whole < t else features

    def _encode(self, video, key=None):
        """Returns the features (b t d) of all frames at once."""
        b, t = video.shape[:2]
        return self.encoder(video.reshape(b * t, 1, *video.shape[2:]), key).reshape(b, t, -1)


class MeanReadout(nnx.Module):
    """Averages the class tokens: (b c d) -> (b d)."""

    def __call__(self, class_tokens, key=None, index=None):
        return class_tokens.mean(axis=1)


class Classifier(nnx.Module):
    """An encoder, a readout of its class tokens, and a linear head.

    Args:
        encoder: encoder(video (b t y x 3), key) -> (b c d), with the attribute `shape`.
        readout: readout((b c d), key, index) -> (b d); None is the mean over the class tokens.
        width: d of the output of the readout.
        num_classes: number of logits.
        head_dropout: dropout rate of the input of the head.
    """

    def __init__(
        self, encoder, readout=None, *, width: int, num_classes: int, head_dropout: float = 0.0, rngs: nnx.Rngs
    ):
        require(num_classes >= 1, f"model.num_classes={num_classes} must be at least 1.")
        require(0 <= head_dropout < 1, f"model.head_dropout={head_dropout} must be at least 0 and below 1.")
        self.head_dropout = head_dropout
        self.encoder, self.readout = encoder, readout or MeanReadout()
        self.head = Linear(width, num_classes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of one clip, (t, y, x, 3)."""
        return self.encoder.shape

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    def __call__(self, video, key=None, index=None):
        """Returns the logits (b, num_classes) of a batch of clips, in float32.

        Args:
            video: (b t y x 3), uint8, or floats, which count as normalised already.
            key: random key of a training step; None in evaluation.
            index: (b t), the index of each frame in its video, for a readout that uses frame positions.
        Raises:
            ConfigError: the clips do not have the shape of the model, or their pixels have another type.
        """
        return self.head(self.features(video, key, index))

    def features(self, video, key=None, index=None):
        """Returns the input of the head, (b d) in float32; the arguments are those of `__call__`."""
        require(
            video.shape[1:] == self.shape,
            f"The model takes clips of shape {self.shape} (t y x c), not {video.shape[1:]}.",
        )
        warn_of_unit_range(video)
        encoder_key, readout_key = (None, None) if key is None else jax.random.split(key)
        tokens = self.encoder(video, encoder_key)
        # At least float32; float64 stays float64, for tests.
        features = self.readout(tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32)), readout_key, index)
        if readout_key is None:
            return features
        return dropout(features, self.head_dropout, LayerRng(jax.random.fold_in(readout_key, 1), jnp.zeros(())))
