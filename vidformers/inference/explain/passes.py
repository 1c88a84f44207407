"""Passes through a model: one that records its attention weights, and one that propagates scalars through them."""

import math
from functools import partial, singledispatchmethod

import jax
import jax.numpy as jnp
from flax import nnx

from vidformers.attention.longformer import FrameSequence
from vidformers.errors import ConfigError
from vidformers.inference.explain.propagate import RecordingKernel, propagate, residual
from vidformers.layers.convolution import mean_pool
from vidformers.layers.embedding import normalise
from vidformers.layers.tokens import tokens_of_maps
from vidformers.models.encoder import Encoder, FramewiseEncoder, MeanReadout
from vidformers.models.pyramid import Pyramid
from vidformers.models.resnet import ResNet
from vidformers.models.stat import MeanEncoder, TemporalAggregation
from vidformers.models.vtn import TemporalEncoder


class ModelPass:
    """A pass through the stages of a model. Subclasses define its steps, which are the methods that follow.

    A new class of encoder or readout is registered with `encoder` or `readout`.

    Attributes:
        grid: (t, y, x), the patch grid of the input embedding.
        pools_patches_after_attention: whether the encoder ends in global average pooling of patches that attention has
            mixed.
        reads_means_of_frames: whether the pass supports a `MeanEncoder`, which has no class tokens.
    """

    grid: tuple[int, ...] = ()
    pools_patches_after_attention = False
    reads_means_of_frames = False

    def maps(self, embedding, x, embeds_pixels, normalised_by=None):
        """Embeds x as maps of patches (b t y x d).

        Args:
            embedding: embedding(x) returns the maps.
            x: pixels, or the maps of the stage before.
            embeds_pixels: whether x is pixels.
            normalised_by: an encoder with the `mean` and `std` of the pixels, if the embedding does not normalise them.
        """
        raise NotImplementedError

    def class_tokens(self, initial, patches, count):
        """Returns the `count` class tokens (b c d) that join the patches. In the model they are `initial(patches)`."""
        raise NotImplementedError

    def stage(self, stage, tokens):
        """Passes `Tokens` through a stage of the encoder."""
        raise NotImplementedError

    def norm(self, encoder, x):
        """Applies the norm of an encoder."""
        raise NotImplementedError

    def average(self, maps, mean):
        """Returns `mean(maps)` of maps (b t y x d): average pooling, treated as attention with uniform weights."""
        raise NotImplementedError

    def sequence(self, readout, features, index):
        """Returns the features of frames (b t d) as the `FrameSequence` that a `TemporalEncoder` reads."""
        raise NotImplementedError

    def temporal_stage(self, stage, sequence):
        """Passes a `FrameSequence` through a stage of a `TemporalEncoder`."""
        raise NotImplementedError

    def blocks(self, blocks, tokens):
        """Passes `Tokens` through blocks whose parameters are not stacked."""
        raise NotImplementedError

    def head(self, model, read, class_tokens):
        """Applies the readout `read` to the class tokens, then the head. Returns one row per clip."""
        raise NotImplementedError

    def __call__(self, model, x, index=None):
        return self.readout(model.readout, model, _widen(self.encoder(model.encoder, x)), index)

    @singledispatchmethod
    def readout(self, readout, model, features, index):
        """Passes the features (b c d) of the encoder through the readout and the head."""
        raise _unsupported("readout", readout)

    @readout.register
    def _(self, readout: MeanReadout, model, features, index):
        return self.head(model, readout, features)

    @readout.register
    def _(self, readout: TemporalEncoder, model, features, index):
        sequence = self.sequence(readout, features, index)
        for stage in readout.stages:
            sequence = self.temporal_stage(stage, sequence)
        return self.head(model, readout.class_features, sequence.tokens[:, :1])

    @readout.register
    def _(self, readout: TemporalAggregation, model, features, index):
        tokens = tokens_of_maps(features[:, :, None, None], self.class_tokens(readout.tokens, features, 1))
        tokens = self.blocks(readout.blocks, tokens)
        return self.head(model, lambda class_tokens: readout.norm(class_tokens[:, 0]), tokens.class_tokens)

    @singledispatchmethod
    def encoder(self, encoder, x):
        """Returns the normalised class tokens (b c d) of an encoder."""
        raise _unsupported("encoder", encoder)

    @encoder.register
    def _(self, encoder: FramewiseEncoder, x):
        b, t = x.shape[:2]
        features = self.encoder(encoder.encoder, x.reshape(b * t, 1, *x.shape[2:]))
        self.grid = (t, *self.grid[1:])
        return features.reshape(b, t, -1)

    @encoder.register
    def _(self, encoder: ResNet, x):
        return self.average(self.maps(encoder.maps, x, embeds_pixels=True), encoder.features)

    @encoder.register
    def _(self, encoder: Pyramid, x):
        for i, (embedding, stage) in enumerate(zip(encoder.embeddings, encoder.stages, strict=True)):
            maps = self.maps(embedding, x, embeds_pixels=i == 0, normalised_by=encoder)
            count = encoder.num_class_tokens if i == len(encoder.stages) - 1 else 0
            class_tokens = self.class_tokens(partial(encoder.initial_class_tokens, i), maps, count)
            tokens = self.stage(stage, tokens_of_maps(maps, class_tokens))
            x = tokens.maps
        if encoder.num_class_tokens:
            return self.norm(encoder, tokens.class_tokens)
        self.pools_patches_after_attention = True
        return self.average(self.norm(encoder, x), _mean)

    @encoder.register
    def _(self, encoder: MeanEncoder, x):
        if not self.reads_means_of_frames:
            raise ConfigError(
                "--mode=explain follows class tokens, which a model with model.frame_token=mean does not have. Explain "
                "a model with model.frame_token=class."
            )
        return self._class_tokens_of_stages(encoder, x)

    @encoder.register
    def _(self, encoder: Encoder, x):
        return self._class_tokens_of_stages(encoder, x)

    def _class_tokens_of_stages(self, encoder, x):
        """Returns the normalised class tokens (b c d) of an `Encoder`."""
        maps = self.maps(partial(_embedded_maps, encoder.embedding), x, embeds_pixels=True)
        tokens = tokens_of_maps(maps, jnp.zeros((len(maps), 0, maps.shape[-1]), maps.dtype))
        for i, stage in enumerate(encoder.stages):
            if i == encoder.class_token_stage:
                count = tokens.grid[0] if encoder.class_per_frame else 1
                class_tokens = self.class_tokens(encoder.initial_class_tokens, tokens.patches, count)
                tokens = tokens.replace(class_tokens=class_tokens)
            tokens = self.stage(stage, tokens)
        return self.norm(encoder, encoder.tokens_to_norm(tokens.class_tokens))


class RecordingPass(ModelPass):
    """Computes the logits of a clip and records the attention weights.

    Args:
        perturbations: arrays in the structure of `weights`. The weights are multiplied by 1 + perturbation.
    Attributes:
        weights: in the order of the pass, a list for each stage, as `_run_stage` returns it, and an array (b t y x) for
            average pooling.
        last_stage: the last stage of the encoder, its input tokens and its weights, or None without a stage.
        temporal_weights: the weights of each stage of a `TemporalEncoder`, empty for other models.
    """

    def __init__(self, perturbations=None):
        self.perturbations, self.weights = iter(perturbations or ()), []
        self.last_stage, self.temporal_weights = None, []

    def maps(self, embedding, x, embeds_pixels, normalised_by=None):
        if embeds_pixels and normalised_by is not None:
            x = normalise(x, normalised_by.mean, normalised_by.std, normalised_by.dtype)
        x = embedding(x)
        if embeds_pixels:
            self.grid = x.shape[1:4]
        return x

    def average(self, maps, mean):
        self.weights.append(jnp.full(maps.shape[:4], 1 / math.prod(maps.shape[1:4])))
        perturbation = next(self.perturbations, None)
        return mean(maps if perturbation is None else maps * (1 + perturbation[..., None]).astype(maps.dtype))

    def class_tokens(self, initial, patches, count):
        return initial(patches)

    def norm(self, encoder, x):
        return encoder.norm(x)

    def sequence(self, readout, features, index):
        return readout.embed(features, positions=index)

    def head(self, model, read, class_tokens):
        return model.head(read(class_tokens))

    def stage(self, stage, tokens):
        out, weights = _run_stage(stage, tokens, _record, next(self.perturbations, None))
        self.weights.append(weights)
        self.last_stage = (stage, tokens, weights)
        return out

    def temporal_stage(self, stage, sequence):
        sequence, weights = _run_stage(stage, sequence, _record, next(self.perturbations, None))
        self.weights.append(weights)
        self.temporal_weights.append(weights)
        return sequence

    def blocks(self, blocks, tokens):
        tokens, weights = _run_blocks(blocks, tokens, _record, next(self.perturbations, None))
        self.weights.append(weights)
        return tokens


class PropagationPass(ModelPass):
    """Propagates one scalar per patch (b t y x 1) through recorded weights to one scalar per clip (b 1).

    Args:
        weights: the weights of a `RecordingPass`, or arrays in the same structure, such as their gradients.
        average_with_identity: whether attention and the identity of the residual path are averaged, as in rollout, or
            summed.
    Attributes:
        dictionary_shares: see `Relevance.dictionary_shares`.
    """

    def __init__(self, weights, *, average_with_identity: bool):
        self.weights, self.dictionary_shares = iter(weights), {}
        self.step = partial(_propagate, average_with_identity=average_with_identity)

    def maps(self, embedding, x, embeds_pixels, normalised_by=None):
        if embeds_pixels:
            self.grid = x.shape[1:4]
            return x
        return mean_pool(x, 2)

    def average(self, scalars, mean):
        return (scalars * next(self.weights)[..., None]).sum(axis=(1, 2, 3))[:, None]

    def class_tokens(self, initial, patches, count):
        return jnp.zeros((len(patches), count, 1))  # an initial class token does not depend on the clip

    def norm(self, encoder, x):
        return x

    def sequence(self, readout, features, index):
        tokens = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))
        return FrameSequence(tokens, jnp.ones(tokens.shape[:2], bool))

    def head(self, model, read, class_tokens):
        return class_tokens.mean(axis=1)

    def stage(self, stage, scalars):
        scalars, shares = _run_stage(stage, scalars, self.step, next(self.weights))
        for sublayer, share in zip(stage.layers.sublayers, shares, strict=True):
            if share:
                self.dictionary_shares[f"{len(self.dictionary_shares)} {_name(sublayer)}"] = share[0]
        return scalars

    temporal_stage = stage

    def blocks(self, blocks, scalars):
        return _run_blocks(blocks, scalars, self.step, next(self.weights))[0]


def _record(sublayer, tokens, perturbations):
    """Returns the tokens after a sublayer, and a list of the attention weights of each call of its kernel."""
    if not hasattr(sublayer, "kernel"):
        return sublayer(tokens), []
    sublayer.kernel = recording = RecordingKernel(sublayer.kernel, perturbations)
    return sublayer(tokens), recording.weights


def _propagate(sublayer, scalars, weights, *, average_with_identity):
    """Returns the scalars after a sublayer, and a list.

    The list holds the share (b) of the attention weights on the dictionary if its hybrid is 'combined'. Otherwise it is
    empty.
    """
    attended, kept, shares = propagate(sublayer, scalars, weights), residual(sublayer, scalars), []
    if attended is None:
        return kept, shares
    dictionary = getattr(sublayer, "dictionary", None)
    if dictionary is not None and dictionary.hybrid == "combined":
        # The weighted sum of ones is the sum of the weights on the tokens of the clip. All weights sum to 1.
        sums = [x for x in propagate(sublayer, jax.tree.map(jnp.ones_like, scalars), weights) if x is not None]
        shares = [1 - sum(x.reshape(len(x), -1).sum(1) for x in sums) / sum(x[0].size for x in sums)]

    def add(kept, attended):
        if attended is None or not attended.size:
            return kept
        attended = attended.sum(-1, keepdims=True) / sublayer.heads
        return (kept + attended) / 2 if average_with_identity else kept + attended

    if isinstance(scalars, FrameSequence):
        return scalars._replace(tokens=add(kept.tokens, attended.patches)), shares
    patches, class_tokens = add(kept.patches, attended.patches), add(kept.class_tokens, attended.class_tokens)
    return kept.replace(patches=patches, class_tokens=class_tokens), shares


def _run_stage(stage, x, step, extras):
    """Runs `step(sublayer, x, extra) -> (x, out)` through the layers of a stage.

    Args:
        extras: a list with one entry per sublayer of a layer, stacked over the layers: the weights to apply, or the
            perturbations of the weights to record. None: no perturbations.
    Returns:
        x after the stage, and the outs in the layout of `extras`.
    """
    make_block, parameters, shared = stage.split_blocks()

    def layer(x, stacked):
        parameters, extras = stacked
        return _run_block(make_block(parameters, shared).sublayers, x, step, extras)

    if stage.depth > 1:
        return jax.lax.scan(layer, x, (parameters, extras))
    # A single layer may change the shape of x, which a scan does not allow.
    x, outs = layer(x, jax.tree.map(lambda leaf: leaf[0], (parameters, extras)))
    return x, jax.tree.map(lambda leaf: leaf[None], outs)


def _run_blocks(blocks, x, step, extras):
    """Runs `step` as `_run_stage` does, for blocks whose parameters are not stacked. `extras` is a list by block."""
    outs = []
    for i, block in enumerate(blocks):
        x, out = _run_block(nnx.merge(*nnx.split(block)).sublayers, x, step, extras and extras[i])
        outs.append(out)
    return x, outs


def _run_block(sublayers, x, step, extras):
    outs = []
    for i, sublayer in enumerate(sublayers):
        x, out = step(sublayer, x, extras and extras[i])
        outs.append(out)
    return x, outs


def _unsupported(kind, module):
    return ConfigError(
        f"--mode=explain does not support the {kind} {type(module).__name__}. Register it with `ModelPass.{kind}` in "
        f"{__name__}."
    )


def _name(sublayer):
    return type(getattr(sublayer, "scheme", sublayer)).__name__


def _embedded_maps(embedding, video):
    """Returns the patches of an embedding on its grid (b t y x d)."""
    patches = embedding(video)
    return patches.reshape(len(patches), *embedding.grid, -1)


def _mean(maps):
    """Returns the mean (b 1 d) of maps (b t y x d), in float32 or wider."""
    return maps.mean(axis=(1, 2, 3), dtype=jnp.promote_types(maps.dtype, jnp.float32))[:, None]


def _widen(x):
    """Returns x in float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
