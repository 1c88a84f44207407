"""How much each patch counts for the answer, by the attention weights of a model: rollout, and by their gradient.

A model is walked twice. `_Answer` computes it and keeps all attention weights; `_Field` takes one number for each patch
through those weights to one number for the clip. That is linear, and its gradient is the relevance of every patch,
whatever the scheme: how frames are folded, shifted, pooled or windowed, `flow` has from the scheme itself.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.attention.longformer import FrameSequence
from vidformers.inference.explain.propagate import RecordingKernel, propagate, residual
from vidformers.layers.convolution import mean_pool
from vidformers.layers.embedding import normalise
from vidformers.layers.tokens import Tokens
from vidformers.models.encoder import FramewiseEncoder
from vidformers.models.pyramid import Pyramid
from vidformers.models.resnet import ResNet
from vidformers.models.stat import TemporalAggregation
from vidformers.models.vtn import TemporalEncoder


class Relevance(NamedTuple):
    """Of a batch of clips, on the grid of the first patches (t y x).

    Attributes:
        logits: (b k).
        target: (b), the class that is explained.
        rollout: (b t y x), attention rollout (Abnar and Zuidema, arXiv:2005.00928): each attention as the mean of its
            heads, half of it and half of the residual; a token that does not query keeps what it has. A patch of a
            coarser grid, of pooled keys or behind a convolution between stages, is the mean of the patches it covers.
        gradient: (b t y x), for the target (Chefer et al., arXiv:2103.15679, eq. 5, 6): each weight times its gradient,
            the positive part, the mean of the heads, and the residual whole. Of a ResNet and of Swin, whose last maps
            are averaged, the average counts as an attention, by the gradient of its scores; of Swin, what it reads
            of a patch directly, and not by way of others, is left out: it would outweigh all attention.
        heads: (b h t y x), what the class token (in Swin every patch) reads in the last layer of the encoder that it
            reads patches in, by its heads; on the coarser grid that the layer may have. None of a ResNet.
        frames: (b t), in VTN what the class token of the last layer over time reads of each frame; otherwise None.
        dictionary: by attention sublayer with a dictionary in combined correlation, (layers b), the share of its
            weights that goes to it.
    """

    logits: jax.Array
    target: jax.Array
    rollout: jax.Array
    gradient: jax.Array
    heads: jax.Array | None
    frames: jax.Array | None
    dictionary: dict


def relevance(model, video, index=None, target=None) -> Relevance:
    """The relevance of every patch of clips (b t y x 3) for the classes `target` (b), by default the likeliest.

    `index` (b t) is that of frames in their video, for models that take it. All attention weights are held at once: in
    a model that attends jointly, layers times heads times the square of the number of tokens.
    """
    walk = _Answer()
    logits = walk(model, video, index)
    target = jnp.argmax(logits, axis=-1) if target is None else target

    def score(nudges):
        return jnp.take_along_axis(_Answer(nudges)(model, video, index), target[:, None], axis=-1).sum()

    def flows(field, seen, half):
        walk = _Field(seen, half)
        return walk(model, field).sum(), walk.shares

    edges = jax.grad(score)(jax.tree.map(jnp.zeros_like, walk.seen))
    field = jnp.zeros((len(video), *walk.grid, 1))
    edges = [
        _centred(*pair) if isinstance(pair[1], jax.Array) else pair[0] for pair in zip(edges, walk.seen, strict=True)
    ]
    positive = jax.tree.map(jax.nn.relu, edges)
    gradient, _ = jax.grad(flows, has_aux=True)(field, positive, False)
    if isinstance(model.encoder, Pyramid) and not model.encoder.num_class_tokens:
        silent = [*jax.tree.map(jnp.zeros_like, positive[:-1]), positive[-1]]
        gradient = jnp.maximum(gradient - jax.grad(flows, has_aux=True)(field, silent, False)[0], 0)
    rollout, shares = jax.grad(flows, has_aux=True)(field, walk.seen, True)
    over_time = isinstance(model.readout, TemporalEncoder)
    return Relevance(
        logits,
        target,
        rollout[..., 0],
        gradient[..., 0],
        _of_heads(walk, len(video)),
        _of_frames(walk.seen[-1]) if over_time else None,
        {name: share.reshape(len(share), len(video), -1).mean(-1) for name, share in shares.items()},
    )


class _Walk:
    """A way through a model, of its input or of what stands for it. The methods below say what becomes of it there."""

    grid: tuple[int, ...] = ()  # (t, y, x) of the first patches

    def __call__(self, model, x, index=None):
        classes, readout = _wide(self.encoder(model.encoder, x)), model.readout
        if isinstance(readout, TemporalEncoder):
            series = self.series(readout, classes, index)
            for stage in readout.stages:
                series = self.stage(stage, series)
            return self.head(model, readout.read, series.tokens[:, :1])
        if isinstance(readout, TemporalAggregation):
            tokens = Tokens(classes[:, :, None, None], self.class_tokens(readout.tokens, classes, 1))
            tokens = self.blocks(readout.blocks, tokens)
            return self.head(model, lambda tokens: readout.norm(tokens[:, 0]), tokens.class_tokens)
        return self.head(model, readout, classes)

    def encoder(self, encoder, x):
        """The class tokens (b c d) of an encoder, normalised."""
        if isinstance(encoder, FramewiseEncoder):
            b, t = x.shape[:2]
            classes = self.encoder(encoder.encoder, x.reshape(b * t, 1, *x.shape[2:]))
            self.grid = (t, *self.grid[1:])
            return classes.reshape(b, t, -1)
        if isinstance(encoder, ResNet):
            return self.average(self.patches(encoder.maps, x, first=True), encoder.features)
        if isinstance(encoder, Pyramid):
            return self.pyramid(encoder, x)
        patches = self.patches(encoder.embedding, x, first=True)
        tokens = Tokens(patches, jnp.zeros((len(patches), 0, patches.shape[-1]), patches.dtype))
        for i, stage in enumerate(encoder.stages):
            if i == encoder.class_enters:
                count = patches.shape[1] if encoder.class_per_frame else 1
                tokens = tokens._replace(
                    class_tokens=self.class_tokens(encoder.initial_class_tokens, tokens.patches, count)
                )
            tokens = self.stage(stage, tokens)
        return self.norm(encoder, tokens.class_tokens)

    def pyramid(self, encoder, x):
        for i, (embedding, stage) in enumerate(zip(encoder.embeddings, encoder.stages, strict=True)):
            patches = self.patches(embedding, x, first=i == 0, normalised_by=encoder)
            count = encoder.num_class_tokens if i == len(encoder.stages) - 1 else 0
            classes = self.class_tokens(partial(encoder.initial_class_tokens, i), patches, count)
            x, classes = self.stage(stage, Tokens(patches, classes))
        return self.norm(encoder, classes) if encoder.num_class_tokens else self.average(self.norm(encoder, x), _mean)


class _Answer(_Walk):
    """The logits of a clip. `seen` holds the weights of each attention in their order, those of a stage stacked.

    Args:
        nudges: in the structure of `seen`, numbers that 1 is added to and the weights are multiplied by.
    Attributes:
        last: of the last stage of the encoder: it, the tokens that it starts with, and its weights.
    """

    def __init__(self, nudges=None):
        self.nudges, self.seen, self.last = iter(nudges or ()), [], None

    def patches(self, embedding, x, first, normalised_by=None):
        if first and normalised_by is not None:
            x = normalise(x, normalised_by.mean, normalised_by.std, normalised_by.dtype)
        x = embedding(x)
        if first:
            self.grid = x.shape[1:4]
        return x

    def average(self, maps, read):
        """What is read of the average of maps (b t y x d), which counts as an attention of even weights."""
        self.seen.append(jnp.full(maps.shape[:4], 1 / math.prod(maps.shape[1:4])))
        nudge = next(self.nudges, None)
        return read(maps if nudge is None else maps * (1 + nudge[..., None]).astype(maps.dtype))

    def class_tokens(self, make, patches, count):
        return make(patches)

    def norm(self, encoder, x):
        return encoder.norm(x)

    def series(self, readout, features, index):
        return readout.embed(features, positions=index)

    def head(self, model, read, classes):
        return model.head(read(classes))

    def stage(self, stage, tokens):
        before = tokens
        tokens, seen = _through(stage, tokens, _answer, next(self.nudges, None))
        self.seen.append(seen)
        if isinstance(tokens, Tokens):
            self.last = (stage, before, seen)
        return tokens

    def blocks(self, blocks, tokens):
        tokens, seen = _through_all(blocks, tokens, _answer, next(self.nudges, None))
        self.seen.append(seen)
        return tokens


class _Field(_Walk):
    """One number of a clip (b 1) from one a patch (b t y x 1), by the weights that `_Answer` has seen.

    Args:
        half: each attention and its residual count by half; otherwise both count whole.
    Attributes:
        shares: that of `Relevance.dictionary`.
    """

    def __init__(self, seen, half: bool):
        self.seen, self.step, self.shares = iter(seen), partial(_flow, half), {}

    def patches(self, embedding, x, first, normalised_by=None):
        if first:
            self.grid = x.shape[1:4]
            return x
        return mean_pool(x, 2)

    def average(self, field, read):
        return (field * next(self.seen)[..., None]).sum(axis=(1, 2, 3))[:, None]

    def class_tokens(self, make, patches, count):
        return jnp.zeros((len(patches), count, 1))  # nothing of the clip yet

    def norm(self, encoder, x):
        return x

    def series(self, readout, features, index):
        tokens = jnp.pad(features, ((0, 0), (1, 0), (0, 0)))
        return FrameSequence(tokens, jnp.ones(tokens.shape[:2], bool))

    def head(self, model, read, classes):
        return classes.mean(axis=1)

    def stage(self, stage, field):
        field, shares = _through(stage, field, self.step, next(self.seen))
        for sublayer, share in zip(stage.layers.sublayers, shares, strict=True):
            if share:
                self.shares[f"{len(self.shares)} {_name(sublayer)}"] = share[0]
        return field

    def blocks(self, blocks, field):
        return _through_all(blocks, field, self.step, next(self.seen))[0]


def _answer(sublayer, tokens, nudges):
    """(tokens behind a sublayer, the weights of its attention: a list for each call of its kernel)."""
    if not hasattr(sublayer, "kernel"):
        return sublayer(tokens), []
    sublayer.kernel = watched = RecordingKernel(sublayer.kernel, nudges)
    return sublayer(tokens), watched.seen


def _flow(half, sublayer, field, seen):
    """(field behind a sublayer, [share of its dictionary (b)] where it has one and shares weights with it)."""
    read, passing, shares = propagate(sublayer, field, seen), residual(sublayer, field), []
    if read is None:
        return passing, shares
    external = sublayer.dictionary if hasattr(sublayer, "dictionary") else None
    if external is not None and external.hybrid == "combined":
        whole = [each for each in propagate(sublayer, jax.tree.map(jnp.ones_like, field), seen) if each is not None]
        shares = [1 - sum(each.reshape(len(each), -1).sum(1) for each in whole) / sum(each[0].size for each in whole)]

    def joined(passing, read):
        if read is None or not read.size:
            return passing
        read = read.sum(-1, keepdims=True) / sublayer.heads
        return (passing + read) / 2 if half else passing + read

    if isinstance(field, FrameSequence):
        return field._replace(tokens=joined(passing.tokens, read.patches)), shares
    return Tokens(*map(joined, passing, read)), shares


def _through(stage, x, step, extras):
    """Runs step(sublayer, x, extra) -> (x, out) through the layers of a stage, `extras` and outs a list of sublayers'
    with the layers stacked."""
    graph, parameters = nnx.split(stage.layers)

    def layer(x, own):
        parameters, extras = own
        return _block(nnx.merge(graph, parameters).sublayers, x, step, extras)

    if stage.depth > 1:
        return jax.lax.scan(layer, x, (parameters, extras))
    x, outs = layer(x, jax.tree.map(lambda leaf: leaf[0], (parameters, extras)))  # it may change the shape of x
    return x, jax.tree.map(lambda leaf: leaf[None], outs)


def _through_all(blocks, x, step, extras):
    """`_through` for blocks that are not stacked."""
    outs = []
    for i, block in enumerate(blocks):
        x, out = _block(nnx.merge(*nnx.split(block)).sublayers, x, step, extras and extras[i])
        outs.append(out)
    return x, outs


def _block(sublayers, x, step, extras):
    outs = []
    for i, sublayer in enumerate(sublayers):
        x, out = step(sublayer, x, extras and extras[i])
        outs.append(out)
    return x, outs


def _centred(edges, weights):
    """Of an average, the gradient of the scores that would give its weights: what all share says nothing."""
    return edges - weights * edges.sum(axis=(1, 2, 3), keepdims=True)


def _of_heads(walk, clips):
    """(b h t y x), that of `Relevance.heads`."""
    if walk.last is None:
        return None
    stage, tokens, seen = walk.last
    graph, parameters = nnx.split(stage.layers)
    sublayers = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[-1], parameters)).sublayers
    seen = jax.tree.map(lambda leaf: leaf[-1], seen)
    field = Tokens(*(jnp.zeros((*each.shape[:-1], 1)) for each in tokens))

    def read(patches, sublayer, own):
        """(n h): what class tokens read, or all patches where there are none."""
        found = propagate(sublayer, field._replace(patches=patches), own)
        if found is None or tokens.class_tokens.shape[1] and found.class_tokens is None:
            return None
        out = found.class_tokens if tokens.class_tokens.shape[1] else found.patches
        return out.reshape(len(out), -1, out.shape[-1]).mean(axis=1)

    last = [pair for pair in zip(sublayers, seen, strict=True) if read(field.patches, *pair) is not None][-1]
    maps = jax.jacobian(lambda patches: read(patches, *last).sum(axis=0))(field.patches)[..., 0]  # h n t y x
    frames = len(field.patches) // clips  # of a clip, where the encoder takes them one by one
    return rearrange(maps, "h (b f) t y x -> b h (f t) y x", f=frames)


def _of_frames(seen):
    """(b t): what the class token reads of the frames in the last layer, the mean of its heads."""
    attention = seen[0]
    of_token = attention[len(attention) // 2]  # its kernel is called for the frames and then for the token
    return of_token[0][-1, :, :, 0, 1:].mean(axis=1)


def _name(sublayer):
    return type(getattr(sublayer, "scheme", sublayer)).__name__


def _mean(patches):
    """(b t y x d) -> (b 1 d)."""
    return patches.mean(axis=(1, 2, 3), dtype=jnp.promote_types(patches.dtype, jnp.float32))[:, None]


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
