"""Whether a model that starts from an image model has, on a still clip, the features of the image model on the image.

In a still clip all frames are equal. The tokens of all frames stay equal through the layers as long as nothing tells
the frames apart. Attention that reads every patch of a frame equally often then computes what attention within a frame
does: softmax over keys that are all repeated equally often is softmax over the keys. The class token is a key once, so
in a model with a class token the patches must be keys once too. Attention that image models lack is silent while its
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
from vidformers.pretrained.roles import ADDED, Role, block_roles, coverage, kind, patch_encoder

_ZEROS = "beyond the ends of the clip it reads zeros (model.boundary=keep repeats the first and the last frame)"


def still_clip_differences(model, values) -> list[str]:
    """Returns why the features of a still clip differ from those of the image in the image model, or [] if they agree.

    Args:
        model: abstract, from `build`.
        values: path -> array, from fitting the weights of an image model.
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
        yield "its positions of frames are drawn (init.time=zero makes them zero)"
    if encoder.class_token_stage > 0:
        yield "its class token enters late, after the first layers"


def _block_reasons(sublayers, roles) -> Iterator[str]:
    if Role.NEW in roles:
        has_class_attention = any(kind(sublayer) is Role.NEW for sublayer in sublayers)
        yield "its class attention is drawn" if has_class_attention else "its blocks without attention are drawn"
        return
    loaded = [role for role in roles if role not in ADDED and role is not Role.SHIFT]
    if loaded != [Role.IMAGE, Role.MLP]:
        yield "its blocks are not one attention that reads every patch of a frame equally often, followed by one MLP"


def _added_attention_reasons(sublayer: SelfAttention, out_kernel) -> Iterator[str]:
    """Yields a reason unless the attention is silent. An extra projection starts at zero by itself."""
    if sublayer.extra is None and (out_kernel is None or out_kernel.any()):
        yield "its attention that the image model lacks is not silent (init.time=zero makes it silent)"


@singledispatch
def loaded_sublayer_reasons(sublayer, grid, has_class_token) -> Iterator[str]:
    """Yields why a sublayer with the weights of the image model computes something else on a still clip.

    Args:
        sublayer: of the model, abstract.
        grid: of the patches, (t, y, x).
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
        yield "its dictionary is drawn"
    if sublayer.kernel != "softmax":
        yield f"its attention has the kernel {sublayer.kernel}, and that of the image model softmax"
    times = coverage(sublayer.scheme, grid).times
    if not times:
        yield "its attention does not read every patch of a frame equally often"
    if not has_class_token:
        return
    if not sublayer.class_keys:
        yield "its class token is not a key of the attention"
    elif times and times != (1,):
        yield f"in its attention each patch is a key {times[-1]} times, the class token once"
    if not sublayer.class_queries:
        yield "its class token does not query in the attention"


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
    """Returns why a readout changes the features, given that all class tokens are equal."""
    raise ConfigError(
        f"the model has a {type(readout).__name__}, for which "
        "vidformers.pretrained.still_clip.readout_reasons registers no function"
    )


@readout_reasons.register
def _(readout: MeanReadout) -> list[str]:
    return []


@readout_reasons.register
def _(readout: TemporalEncoder) -> list[str]:
    return ["its layers over frames are drawn, though the backbone sees every frame as the image model does"]
