"""Compares a model that starts from an image model with this image model, on a still clip.

A still clip is a clip of identical frames. This module decides without computing features whether the features of a
still clip equal the features that the image model computes for one of its frames.

The tokens of all frames stay equal through the layers as long as nothing distinguishes the frames. Attention whose
queries attend to every spatial position equally often then has the same output as attention within a frame, since
repeating all keys equally often does not change a softmax average over them. The class token is a key once, so in a
model with a class token each patch must be a key once, too. Attention that image models lack adds nothing while its
last projection is zero.
"""

from collections.abc import Iterator
from functools import singledispatch

from vidformers.attention.core import SelfAttention
from vidformers.attention.shifted import TokenShift
from vidformers.errors import ConfigError
from vidformers.layers.mlp import Mlp
from vidformers.models.encoder import MeanReadout
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained.roles import ADDED, Role, block_roles, coverage, patch_encoder, sublayer_role

_ZEROS = "it reads zeros beyond the ends of the clip (model.boundary=keep repeats the first and the last frame instead)"


def still_clip_differences(model, values) -> list[str]:
    """Returns the reasons why a still clip gets other features than the image model gives for its frame, [] if equal.

    Args:
        model: the abstract model.
        values: path -> array, from the weights of an image model.
    Raises:
        ConfigError: a sublayer or a readout of an unknown class.
    """
    root, encoder = patch_encoder(model.encoder)
    grid = encoder.embedding.grid
    reasons = list(_encoder_reasons(encoder, values.get((*root, "embedding", "time"))))
    for i, stage in enumerate(encoder.stages):
        sublayers = list(stage.layers.sublayers)
        roles = block_roles(sublayers, grid)
        reasons += _block_reasons(sublayers, roles)
        for j, (sublayer, role) in enumerate(zip(sublayers, roles, strict=True)):
            if role in ADDED:
                out = values.get((*root, "stages", i, "layers", "sublayers", j, "out", "kernel"))
                reasons += _added_attention_reasons(sublayer, out)
            elif role is not Role.NEW:
                reasons += loaded_sublayer_reasons(sublayer, grid, i >= encoder.class_token_stage)
    return list(dict.fromkeys([*reasons, *readout_reasons(model.readout)]))  # each reason once, in order


def _encoder_reasons(encoder, time_table) -> Iterator[str]:
    if encoder.embedding.time is not None and (time_table is None or time_table.any()):
        yield "its positions of frames are randomly initialised (init.time=zero sets them to zero)"
    if encoder.class_token_stage > 0:
        yield "its class token joins the patches only after the first layers"


def _block_reasons(sublayers, roles) -> Iterator[str]:
    if Role.NEW in roles:
        has_class_attention = any(sublayer_role(sublayer) is Role.NEW for sublayer in sublayers)
        new = "class attention" if has_class_attention else "blocks without attention"
        yield f"its {new} {'is' if has_class_attention else 'are'} randomly initialised"
        return
    loaded = [role for role in roles if role not in ADDED and role is not Role.SHIFT]
    if loaded != [Role.IMAGE, Role.MLP]:
        yield "its blocks are not one attention that reads every patch of a frame equally often, followed by one MLP"


def _added_attention_reasons(sublayer: SelfAttention, out_kernel) -> Iterator[str]:
    """Yields a reason unless the last projection is zero. An extra projection is always initialised to zero."""
    if sublayer.extra is None and (out_kernel is None or out_kernel.any()):
        yield "its attention that the image model lacks does not start with an output of zero (set init.time=zero)"


@singledispatch
def loaded_sublayer_reasons(sublayer, grid, has_class_token) -> Iterator[str]:
    """Yields reasons why a sublayer with the weights of the image model has another output for a still clip.

    Args:
        sublayer: a sublayer of the abstract model.
        grid: the grid of patches, (t, y, x).
        has_class_token: whether the tokens of the block include class tokens.
    """
    raise ConfigError(
        f"the model has a {type(sublayer).__name__}, for which "
        "vidformers.pretrained.still_clip.loaded_sublayer_reasons registers no function"
    )


@loaded_sublayer_reasons.register
def _(sublayer: SelfAttention, grid, has_class_token) -> Iterator[str]:
    if sublayer.scheme.reads_zeros_beyond_clip:
        yield _ZEROS
    if sublayer.extra is not None:
        yield "the extra projection after its attention starts at zero"
    if sublayer.dictionary is not None and sublayer.dictionary.hybrid != "multi_view":
        yield "its dictionary is randomly initialised"
    if sublayer.kernel != "softmax":
        yield f"its attention has the kernel {sublayer.kernel}, and the image model's has softmax"
    attended_per_position = coverage(sublayer.scheme, grid).attended_per_position
    if not attended_per_position:
        yield "its attention does not read every patch of a frame equally often"
    if not has_class_token:
        return
    if not sublayer.class_keys:
        yield "its class token is not a key of the attention"
    elif attended_per_position and attended_per_position != (1,):
        yield f"in its attention each patch is a key {attended_per_position[-1]} times, but the class token only once"
    if not sublayer.class_queries:
        yield "its class token is not a query of the attention"


@loaded_sublayer_reasons.register
def _(sublayer: Mlp, grid, has_class_token) -> Iterator[str]:
    if not sublayer.updates_patches:
        yield "its MLP does not change the patches"


@loaded_sublayer_reasons.register
def _(sublayer: TokenShift, grid, has_class_token) -> Iterator[str]:
    if sublayer.reads_zeros_beyond_clip:
        yield _ZEROS


@singledispatch
def readout_reasons(readout) -> list[str]:
    """Returns the reasons why a readout changes the features of equal class tokens, [] if it does not."""
    raise ConfigError(
        f"the model has a {type(readout).__name__}, for which "
        "vidformers.pretrained.still_clip.readout_reasons registers no function"
    )


@readout_reasons.register
def _(readout: MeanReadout) -> list[str]:
    return []


@readout_reasons.register
def _(readout: TemporalEncoder) -> list[str]:
    return [
        "its layers over frames are randomly initialised (its backbone computes the image model's features per frame)"
    ]
