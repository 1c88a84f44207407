"""The relevance of every patch for a prediction: attention rollout, and attention weights times their gradients.

Rollout takes a recording pass and a propagation pass. The gradient method also differentiates a second recording pass.
`RecordingPass` computes the logits and records all attention weights. `PropagationPass` carries one scalar per patch
through the recorded weights to one scalar per clip. The propagation pass is linear in the scalars, so its gradient is
the relevance of every patch. The sublayers fold, shift, pool and window the scalars themselves (see `propagate`), so a
new attention scheme needs no change here.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vidformers.inference.explain.passes import PropagationPass, RecordingPass
from vidformers.inference.explain.propagate import propagate


class Relevance(NamedTuple):
    """The relevance of a batch of clips.

    Maps (b t y x) are on the patch grid of the input embedding, before any pooling. Where a later stage has a coarser
    grid or pooled keys, each of its cells stands for the mean over the patches that it covers.

    Attributes:
        logits: (b classes).
        target: (b), the explained class.
        rollout: (b t y x), attention rollout (Abnar and Zuidema, arXiv:2005.00928). A sublayer with attention weights A
            contributes 0.5 mean_heads(A) + 0.5 I. Tokens without a query contribute I.
        gradient: (b t y x), attention weights times their gradients (Chefer et al., arXiv:2103.15679, eq. 5, 6). A
            sublayer contributes mean_heads(relu(A * (d logit / dA))) + I, for the logit of the target. VTN's ResNet
            backbone and Swin end in global average pooling. It is treated as attention with uniform weights, and its
            gradient is taken with respect to the softmax scores of these weights. For Swin, the relevance that passes
            through the pooling alone is subtracted, because it would outweigh the relevance that passes through
            attention.
        heads: (b h t y x), per head, the attention weights of the class token on the patches, from the last sublayer
            of the encoder in which the class token attends to patches. The grid of that sublayer may be coarser. Swin
            has no class token, and the weights are averaged over the queries of all patches. None for VTN with a ResNet
            backbone.
        frames: (b l h t), in VTN, the attention weights of the class token on the frames, by layer and head of the
            temporal encoder. None for other models.
        dictionary_shares: dict from the name of an attention sublayer to an array (layers b), the share of its
            attention weights on HaViT's dictionary, for hybrid='combined'. Empty for other models.
    """

    logits: jax.Array
    target: jax.Array
    rollout: jax.Array
    gradient: jax.Array
    heads: jax.Array | None
    frames: jax.Array | None
    dictionary_shares: dict


def relevance(model, video, index=None, target=None) -> Relevance:
    """Returns the relevance of every patch of each clip for one class.

    All attention weights are in memory at once. Joint attention has layers x heads x tokens^2 of them per clip.

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

    # The weights become A * (1 + p), so the gradient at p = 0 is already A * (d logit / dA).
    def target_logit(perturbations):
        logits = RecordingPass(perturbations)(model, video, index)
        return jnp.take_along_axis(logits, target[:, None], axis=-1).sum()

    @partial(jax.grad, has_aux=True)
    def patch_relevance(scalars, weights, *, average_with_identity):
        propagation = PropagationPass(weights, average_with_identity=average_with_identity)
        return propagation(model, scalars).sum(), propagation.dictionary_shares

    gradients = jax.grad(target_logit)(jax.tree.map(jnp.zeros_like, recording.weights))
    scalars = jnp.zeros((len(video), *recording.grid, 1))  # any values: the pass is linear, so its gradient is constant
    gradients = [
        # `weights` is an array for average pooling and a list for a stage of attention layers.
        _score_gradients(gradient, weights) if isinstance(weights, jax.Array) else gradient
        for gradient, weights in zip(gradients, recording.weights, strict=True)
    ]
    positive = jax.tree.map(jax.nn.relu, gradients)
    gradient, _ = patch_relevance(scalars, positive, average_with_identity=False)
    if recording.pools_patches_after_attention:
        # The last recorded weights are those of the average pooling.
        pooling_alone = [*jax.tree.map(jnp.zeros_like, positive[:-1]), positive[-1]]
        gradient = jnp.maximum(gradient - patch_relevance(scalars, pooling_alone, average_with_identity=False)[0], 0)
    rollout, dictionary_shares = patch_relevance(scalars, recording.weights, average_with_identity=True)
    return Relevance(
        logits,
        target,
        rollout[..., 0],
        gradient[..., 0],
        None if recording.last_stage is None else _head_maps(*recording.last_stage, len(video)),
        _frame_weights(recording.temporal_weights) if recording.temporal_weights else None,
        {name: share.reshape(len(share), len(video), -1).mean(-1) for name, share in dictionary_shares.items()},
    )


def _score_gradients(gradients, weights):
    """Converts gradients with respect to pooling weights to gradients with respect to their softmax scores.

    With weights w = softmax(s), `gradients` are g = w * (dL / dw), and dL / ds = g - w * sum(g). The result sums to 0
    over the patches, so a gradient that all patches share cancels out.
    """
    return gradients - weights * gradients.sum(axis=(1, 2, 3), keepdims=True)


def _head_maps(stage, tokens, weights, num_clips):
    """Returns `Relevance.heads` (b h t y x) from the last stage, its input tokens and its weights.

    The weighted sums of patch scalars are linear in the scalars, and their Jacobian is the attention weights.
    """
    make_block, parameters, shared = stage.split_blocks()
    sublayers = make_block(jax.tree.map(lambda leaf: leaf[-1], parameters), shared).sublayers
    weights = jax.tree.map(lambda leaf: leaf[-1], weights)
    scalars = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 1)), tokens)
    has_class_tokens = tokens.class_tokens.shape[1] > 0

    def head_sums(patches, sublayer, weights):
        """Returns (b h): propagated scalars, averaged over class tokens, or over patches if there are none.

        b counts frames if the encoder runs frame by frame. Returns None if the tokens to average have no queries in
        this sublayer.
        """
        propagated = propagate(sublayer, scalars.replace(patches=patches), weights)
        if propagated is None:  # not an attention sublayer
            return None
        sums = propagated.class_tokens if has_class_tokens else propagated.patches
        return None if sums is None else sums.reshape(len(sums), -1, sums.shape[-1]).mean(axis=1)

    attentions = [
        attention
        for attention in zip(sublayers, weights, strict=True)
        if head_sums(scalars.patches, *attention) is not None
    ]
    # The sums of a clip depend on its own patches only, so the sum over the clips has the Jacobian of every clip.
    maps = jax.jacobian(lambda patches: head_sums(patches, *attentions[-1]).sum(axis=0))(scalars.patches)[..., 0]
    frames = len(scalars.patches) // num_clips  # more than 1 if the encoder runs on single frames
    return rearrange(maps, "h (b f) t (y x) -> b h (f t) y x", f=frames, y=tokens.grid[1])


def _frame_weights(stages):
    """Returns `Relevance.frames` (b l h t) from the weights of the temporal stages."""
    layers = []
    for weights in stages:
        # `weights` has one list of kernel calls per sublayer. Sublayer 0 is the attention. Its calls are, in order:
        #   frames -> clip[, frames -> dictionary], class token -> clip[, class token -> dictionary]
        # The calls in brackets exist if the dictionary has its own attention. Index len // 2 is class token -> clip.
        class_call = weights[0][len(weights[0]) // 2]
        # [0]: the keys of the clip; [1], if any, those of a combined dictionary. The weights are (l b h 1 k): the query
        # is the class token, and key 0 is the class token itself.
        layers.append(class_call[0][:, :, :, 0, 1:])
    return rearrange(jnp.concatenate(layers), "l b h t -> b l h t")
