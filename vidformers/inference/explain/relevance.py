"""The relevance of every patch for a prediction: attention rollout, and attention weights times their gradients.

Both take two passes through the model. `RecordingPass` computes the logits and records all attention weights.
`PropagationPass` then carries one scalar per patch through the recorded weights to one scalar per clip. The second
pass is linear in the scalars, so its gradient is the relevance of every patch. The sublayers fold, shift, pool and
window the scalars themselves (see `propagate`), so a new attention scheme needs no change here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vidformers.inference.explain.passes import PropagationPass, RecordingPass
from vidformers.inference.explain.propagate import propagate
from vidformers.layers.tokens import Tokens


class Relevance(NamedTuple):
    """The relevance of a batch of clips. Maps are on the grid (t y x) of the first patches.

    Attributes:
        logits: (b k).
        target: (b), the explained class.
        rollout: (b t y x), attention rollout (Abnar and Zuidema, arXiv:2005.00928). Every attention is the mean of its
            heads, and counts half; its residual path counts the other half. A token without a query keeps its value.
            Where the grid is coarser, keys are pooled, or a convolution lies between two stages, a cell is the mean of
            the patches that it covers.
        gradient: (b t y x), attention weights times their gradients for the target (Chefer et al., arXiv:2103.15679,
            eq. 5, 6): the positive part, averaged over heads, plus the residual path. ResNet and Swin average their
            last maps. This average counts as an attention, by the gradient of the scores that would give its weights.
            For Swin, the path that only passes through the average is subtracted, because it would outweigh all
            attention.
        heads: (b h t y x), by head, the attention weights of the class token in the last layer of the encoder in which
            it reads patches. The grid may be the coarser one of that layer. In Swin, the mean over the queries of all
            patches. None for a ResNet.
        frames: (b t), in VTN, the attention weights of the class token in the last temporal layer, averaged over
            heads. None for other models.
        dictionary: for every attention sublayer with a dictionary in combined correlation, (layers b), the share of
            the attention weights on the dictionary.
    """

    logits: jax.Array
    target: jax.Array
    rollout: jax.Array
    gradient: jax.Array
    heads: jax.Array | None
    frames: jax.Array | None
    dictionary: dict


def relevance(model, video, index=None, target=None) -> Relevance:
    """Returns the relevance of every patch of clips for one class each.

    All attention weights are in memory at once. With joint attention, their number is layers x heads x tokens^2.

    Args:
        model: a `Classifier`.
        video: (b t y x 3).
        index: (b t), the indices of the frames in their video, for models that use them.
        target: (b), the classes to explain, or None for the class with the highest logit.
    Raises:
        ConfigError: the model has an encoder, a readout or a sublayer of an unknown class.
    """
    recording = RecordingPass()
    logits = recording(model, video, index)
    target = jnp.argmax(logits, axis=-1) if target is None else target

    def target_logit(perturbations):
        logits = RecordingPass(perturbations)(model, video, index)
        return jnp.take_along_axis(logits, target[:, None], axis=-1).sum()

    def propagated(scalars, weights, halve):
        propagation = PropagationPass(weights, halve)
        return propagation(model, scalars).sum(), propagation.dictionary_shares

    gradients = jax.grad(target_logit)(jax.tree.map(jnp.zeros_like, recording.weights))
    scalars = jnp.zeros((len(video), *recording.grid, 1))
    gradients = [  # the weights of an average are an array, those of a stage a list
        _score_gradients(gradient, weights) if isinstance(weights, jax.Array) else gradient
        for gradient, weights in zip(gradients, recording.weights, strict=True)
    ]
    positive = jax.tree.map(jax.nn.relu, gradients)
    gradient, _ = jax.grad(propagated, has_aux=True)(scalars, positive, False)
    if recording.averages_attended_patches:
        only_average = [*jax.tree.map(jnp.zeros_like, positive[:-1]), positive[-1]]
        gradient = jnp.maximum(gradient - jax.grad(propagated, has_aux=True)(scalars, only_average, False)[0], 0)
    rollout, dictionary_shares = jax.grad(propagated, has_aux=True)(scalars, recording.weights, True)
    return Relevance(
        logits,
        target,
        rollout[..., 0],
        gradient[..., 0],
        None if recording.last_stage is None else _head_maps(*recording.last_stage, len(video)),
        None if recording.temporal_weights is None else _frame_weights(recording.temporal_weights),
        {name: share.reshape(len(share), len(video), -1).mean(-1) for name, share in dictionary_shares.items()},
    )


def _score_gradients(gradients, weights):
    """Returns the gradients of the scores whose softmax gives the weights of an average.

    They sum to 0, so a gradient that all patches share does not count.
    """
    return gradients - weights * gradients.sum(axis=(1, 2, 3), keepdims=True)


def _head_maps(stage, tokens, weights, clips):
    """Returns `Relevance.heads` (b h t y x) from the last stage, its input tokens and its weights."""
    graph, parameters = nnx.split(stage.layers)
    sublayers = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[-1], parameters)).sublayers
    weights = jax.tree.map(lambda leaf: leaf[-1], weights)
    scalars = Tokens(*(jnp.zeros((*x.shape[:-1], 1)) for x in tokens))

    def attended(patches, sublayer, weights):
        """(n h): the mean over the class tokens, or over all patches without class tokens. None if they do not read."""
        found = propagate(sublayer, scalars._replace(patches=patches), weights)
        if found is None or tokens.class_tokens.shape[1] and found.class_tokens is None:
            return None
        out = found.class_tokens if tokens.class_tokens.shape[1] else found.patches
        return out.reshape(len(out), -1, out.shape[-1]).mean(axis=1)

    attentions = [pair for pair in zip(sublayers, weights, strict=True) if attended(scalars.patches, *pair) is not None]
    maps = jax.jacobian(lambda patches: attended(patches, *attentions[-1]).sum(axis=0))(scalars.patches)[..., 0]
    frames = len(scalars.patches) // clips  # more than 1 if the encoder runs on single frames
    return rearrange(maps, "h (b f) t y x -> b h (f t) y x", f=frames)


def _frame_weights(weights):
    """Returns `Relevance.frames` (b t) from the weights of the last temporal stage."""
    calls = weights[0]
    of_class_token = calls[len(calls) // 2]  # the kernel is called for the frames first, then for the class token
    return of_class_token[0][-1, :, :, 0, 1:].mean(axis=1)
