"""MSCA, TokenShift and ViT frame by frame, from the equations of the MSCA paper.

Paper: Hashiguchi and Tamaki, "Vision Transformer with Cross-attention by Temporal Shift for Efficient Action
Recognition", 2022. Its section 3 also defines TokenShift (Zhang et al., 2021).

A clip is z (T, N+1, D); token 0 of every frame is its class token. The papers count frames, heads and channels from 1,
and their bounds "1 <= i < h_b" are read as the first h_b.
"""

import numpy as np
from papers.layers import attend_with_dictionary, blocks, classify, layer_norm, linear, mlp, patches, split_heads


def vit(parameters, video, *, heads: int, patch_size: int, depth: int, frame_average: str = "after_norm"):
    """Returns the logits of a clip, the mean over its frames (eq. 1-3).

    With 'before_norm' the class tokens of the frames are averaged before the last norm, as in TimeSformer's code for
    attention in space only.
    """
    if frame_average == "after_norm":
        return msca(parameters, video, heads=heads, patch_size=patch_size, depth=depth, shifted_blocks=0)
    z = embed(parameters["encoder"], video, patch_size)
    for sublayer, last in blocks(parameters["encoder"]["stages"]):
        z = mlp(last, z + msa(sublayer, layer_norm(sublayer["norm"], z), heads))
    return classify(parameters, z[:, 0].mean(axis=0))


def msca(
    parameters,
    video,
    *,
    heads: int,
    patch_size: int,
    depth: int,
    direction: str = "heads",
    moved: str = "KV",
    before: int = 1,
    after: int = 1,
    shifted_blocks: int | None = None,
    boundary: str = "keep",
    placement: str = "first",
):
    """Returns the logits of a clip (t, y, x, 3).

    Eq. 1, then blocks of eq. 2 and 3. The last `shifted_blocks`, or all, are of eq. 10 and 11 instead (Table 3).
    """
    z = embed(parameters["encoder"], video, patch_size)
    layers = blocks(parameters["encoder"]["stages"])
    assert len(layers) == depth
    for number, (sublayer, last) in enumerate(layers):
        is_shifted = shifted_blocks is None or number >= depth - shifted_blocks
        shift = (direction, moved, before, after, boundary, placement) if is_shifted else ()
        z = mlp(last, z + msa(sublayer, layer_norm(sublayer["norm"], z), heads, *shift))
    return classify(parameters, z[:, 0]).mean(axis=0)


def tokenshift(parameters, video, *, heads: int, patch_size: int, depth: int, fold: int = 4, boundary: str = "zero"):
    """Returns the logits of a clip by eq. 4-9: shift, attention, shift, MLP. The residuals start after the shifts."""
    z = embed(parameters["encoder"], video, patch_size)
    layers = blocks(parameters["encoder"]["stages"])
    assert len(layers) == depth
    channels = z.shape[2] // fold
    for sublayer, last in layers:  # the shifts have no parameters
        z = shift_class_tokens(z, channels, boundary)  # eq. 4
        z = z + msa(sublayer, layer_norm(sublayer["norm"], z), heads)  # eq. 5
        z = mlp(last, shift_class_tokens(z, channels, boundary))  # eq. 6, 7
    return classify(parameters, z[:, 0]).mean(axis=0)


def embed(encoder, video, patch_size: int):
    """Returns z_0 = [c_0, x^1 E, ..., x^N E] + E_pos of every frame (eq. 1)."""
    embedding = encoder["embedding"]
    frames = [
        np.concatenate([encoder["class_token"][None], linear(embedding["patch"], frame)])
        for frame in patches(video, patch_size)
    ]
    return np.array(frames) + embedding["space"]


def neighbour(x, t: int, step: int, boundary: str):
    """Returns x^(t + step) of the frames x, or what stands for it beyond the ends, which the equations leave open."""
    if 0 <= t + step < len(x):
        return x[t + step]
    return {"keep": x[t], "zero": np.zeros_like(x[t]), "wrap": x[(t + step) % len(x)]}[boundary]


def step_of(index: int, before: int, after: int) -> int:
    """Returns the frame, relative to the query's, from which eq. 8, 17 and 21 take a channel, head or patch."""
    return -1 if index < before else 1 if index < before + after else 0


def step_at_ends(head: int, before: int, after: int, heads: int) -> int:
    """Returns what `step_of` does by the authors' code: the first heads come from t+1, the last ones from t-1."""
    return 1 if head < after else -1 if head >= heads - before else 0


def shift_class_tokens(z, channels: int, boundary: str):
    """Returns Shift(z), eq. 8 and 9, with D_b = D_f = `channels`."""
    out = z.copy()
    for t in range(len(z)):
        for d in range(2 * channels):
            out[t, 0, d] = neighbour(z[:, 0, d], t, step_of(d, channels, channels), boundary)
    return out


def msa(parameters, z, heads, direction="heads", moved="", before=0, after=0, boundary="keep", placement="first"):
    """Returns [head_1, ..., head_h] of every frame (eq. 12-16), of Q, K and V of which `moved` are shifted (eq. 17-21).

    Unlike eq. 16 there is a linear map after the heads, and scores are divided by the root of the width of a head. With
    a dictionary (HaViT), its entries are further keys and values of every frame, which are not shifted.
    """
    own = dict(zip("QKV", (split_heads(x, heads) for x in np.split(linear(parameters["qkv"], z), 3, -1)), strict=True))
    out = np.zeros_like(z)
    for t in range(len(z)):
        part = {letter: x[t].copy() for letter, x in own.items()}  # (N+1, h, D / h)
        for letter in moved:
            for index in range(heads if direction == "heads" else z.shape[1]):
                step = step_of(index, before, after)
                if placement == "ends":
                    step = step_at_ends(index, before, after, heads)
                if step and direction == "heads":  # eq. 17, 18
                    part[letter][:, index] = neighbour(own[letter][:, :, index], t, step, boundary)
                elif step:  # eq. 21
                    part[letter][index] = neighbour(own[letter][:, index], t, step, boundary)
        head = [
            attend_with_dictionary(parameters.get("dictionary"), *(part[letter][:, i] for letter in "QKV"), heads, i)
            for i in range(heads)
        ]
        out[t] = linear(parameters["out"], np.concatenate(head, axis=1))
    return out
