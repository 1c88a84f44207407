"""VTN from the text of its paper, the equations of Longformer and BERT, and those of ResNet.

Papers: Neimark et al., "Video Transformer Network", 2021. Beltagy et al., "Longformer", 2020, section 3.1.
He et al., "Deep Residual Learning for Image Recognition", 2016.
"""

import numpy as np
from papers import msca
from papers.layers import (
    attend_with_dictionary,
    blocks,
    convolve,
    feed_forward,
    gelu,
    layer_norm,
    linear,
    mlp,
    split_heads,
)

FRAMES_OF_TABLE, CLASS_ROW, PADDING_ROW = 286, 286, 287


def logits(
    parameters,
    video,
    *,
    heads: int,
    patch_size: int,
    depth: int,
    window,
    tie_global: bool = False,
    backbone: str = "vit",
    depths=(3, 4, 6, 3),
):
    """Returns the logits of a clip (t, y, x, 3): f(x) of every frame, `readout`, last linear map of the head."""
    encoder = parameters["encoder"]["encoder"]
    if backbone == "vit":
        features = vit_features(encoder, video, heads, patch_size, depth)
    else:
        features = resnet_features(encoder, video, depths)
    x = readout(parameters["readout"], features, heads=heads, window=window, tie_global=tie_global)
    return linear(parameters["head"], x)


def vit_features(encoder, video, heads: int, patch_size: int, depth: int):
    """Returns f(x), the class token of a ViT, of every frame (t, d)."""
    z = msca.embed(encoder, video, patch_size)
    layers = blocks(encoder["stages"])
    assert len(layers) == depth
    for sublayer, last in layers:
        z = mlp(last, z + msca.msa(sublayer, layer_norm(sublayer["norm"], z), heads))
    return layer_norm(encoder["norm"], z[:, 0])


def readout(parameters, features, positions=None, mask=None, *, heads: int, window, tie_global: bool = False):
    """Returns the input of the last linear map: embedding, layers of attention and FFN, LN, linear map and GELU of CLS.

    Token 0 is CLS, token 1 + i is frame i.

    Args:
        features: (t, d).
        positions: of each frame in its video; None is 0, 1, ...
        mask: False where a frame is padding; None is no padding.
        window: w of each layer, or one number for all.
        tie_global: whether CLS uses the projections of the frames.
    """
    positions = range(len(features)) if positions is None else positions
    mask = [True] * len(features) if mask is None else mask
    position, token_type = parameters["position"], parameters["token_type"]
    tokens = [parameters["class_token"] + position[CLASS_ROW] + token_type[1]]
    for feature, i, is_frame in zip(features, positions, mask, strict=True):
        tokens.append(feature + position[i % FRAMES_OF_TABLE if is_frame else PADDING_ROW] + token_type[0])
    x = layer_norm(parameters["norm"], np.array(tokens), 1e-12)
    layers = blocks(parameters["stages"])
    windows = window * len(layers) if len(window) == 1 else window
    for (sublayer, last), w in zip(layers, windows, strict=True):
        x = layer_norm(sublayer["norm"], x + longformer(sublayer, x, [True, *mask], heads, w, tie_global), 1e-12)
        x = layer_norm(last["norm"], x + feed_forward(last, x), 1e-12)
    return gelu(linear(parameters["head"], layer_norm(parameters["head_norm"], x[0], 1e-5)))


def longformer(parameters, x, valid, heads: int, window: int, tie_global: bool):
    """Returns W_O of the heads for every token.

    Frame i attends to CLS and to frames j with |i - j| <= w/2, by Q_s, K_s and V_s. CLS attends to itself and to all
    frames, by Q_g, K_g and V_g (Longformer sec. 3.1). Padding is no key. The layer may have HaViT's dictionary.
    """
    local = np.split(linear(parameters["qkv"], x), 3, axis=-1)
    if tie_global:
        of_class = local
    else:
        q = linear(parameters["q_global"], x)
        of_class = [q, *np.split(linear(parameters["kv_global"], x), 2, axis=-1)]
    entries = parameters.get("dictionary")
    rows = []
    for i in range(len(x)):
        q, k, v = (split_heads(part, heads) for part in (local if i else of_class))
        keys = [j for j in range(len(x)) if valid[j] and (i == 0 or j == 0 or abs(i - j) <= window // 2)]
        s = [attend_with_dictionary(entries, q[i, a], k[keys, a], v[keys, a], heads, a) for a in range(heads)]
        rows.append(linear(parameters["out"], np.concatenate(s)))
    return np.array(rows)


def resnet_features(encoder, video, depths):
    """Returns the mean over the last map, and a linear map of it if there is one, of every frame (t, d).

    Batch norms are folded.
    """
    features = []
    for frame in video:
        x, number = max_pool(np.maximum(convolution(encoder["stem"], frame, 2), 0)), 0
        for stage, depth in enumerate(depths):
            for i in range(depth):
                x = bottleneck(encoder["blocks"][number], x, 2 if stage and i == 0 else 1)
                number += 1
        features.append(linear(encoder["out"], x.mean((0, 1))) if "out" in encoder else x.mean((0, 1)))
    return np.array(features)


def bottleneck(parameters, x, stride: int):
    """Returns relu(F(x) + x), or with the projection of the shortcut where the shape changes (He et al. eq. 1, 2)."""
    branch = np.maximum(convolution(parameters["reduce"], x, 1), 0)
    branch = np.maximum(convolution(parameters["spatial"], branch, stride), 0)
    branch = convolution(parameters["expand"], branch, 1)
    return np.maximum(branch + (convolution(parameters["skip"], x, stride) if "skip" in parameters else x), 0)


def convolution(parameters, x, stride: int):
    """Returns scale * (kernel * x) + bias of a map (y, x, c)."""
    kernel = parameters["convolution"]["kernel"]
    out = convolve(x, kernel, (stride, stride), (len(kernel) // 2,) * 2)
    return out * parameters["scale"] + parameters["bias"]


def max_pool(x):
    """Returns the maxima over 3 x 3 places at a stride of 2."""
    rows, columns = (range(0, n, 2) for n in x.shape[:2])
    return np.array([[x[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].max((0, 1)) for c in columns] for r in rows])
