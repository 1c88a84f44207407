"""Swin and CvT on clips with HaViT's dictionary, the other models of HaViT's Table 7, from their equations.

Papers: Liu et al., "Video Swin Transformer", 2021. Wu et al., "CvT: Introducing Convolutions to Vision Transformers",
2021. HaViT does not say how it extends CvT to clips.
"""

import itertools
import math

import numpy as np
from papers.layers import GELUS, attend_with_dictionary, blocks, convolve, layer_norm, linear, mlp, split_heads

EPSILON = 1e-5  # of the norms of both models


def swin(parameters, video, *, heads: int, patch_size: int, window, patch_frames: int):
    """Returns the logits of a clip (t, y, x, 3) by a Video Swin of one stage: z = LN E x, then pairs of blocks (eq. 1).

    The windows of the first block of a pair start at the first patch, those of the second half a window later.
    """
    encoder = parameters["encoder"]
    t, y, x = (n // size for n, size in zip(video.shape, (patch_frames, patch_size, patch_size), strict=False))
    tubelets = video.reshape(t, patch_frames, y, patch_size, x, patch_size, 3).transpose(0, 2, 4, 1, 3, 5, 6)
    embedding = encoder["embeddings"][0]
    z = layer_norm(embedding["norm"], linear(embedding["patch"], tubelets.reshape(t, y, x, -1)), EPSILON)
    for whole, first, shifted, second in blocks(encoder["stages"]):
        z = mlp(first, z + window_attention(whole, z, heads, window, False), EPSILON)
        z = mlp(second, z + window_attention(shifted, z, heads, window, True), EPSILON)
    return linear(parameters["head"], layer_norm(encoder["norm"], z, EPSILON).mean((0, 1, 2)))


def window_attention(parameters, z, heads: int, window, is_shifted: bool):
    """Returns W_O of the heads, softmax(q k^T / sqrt(d_h) + B) v in 3-D windows (Video Swin eq. 2), of z (t, y, x, d).

    B is a row of the table for each displacement of query and key. It does not apply to the entries of a dictionary.
    """
    q, k, v = (
        split_heads(part, heads)
        for part in np.split(linear(parameters["qkv"], layer_norm(parameters["norm"], z, EPSILON)), 3, axis=-1)
    )
    starts = [w // 2 if is_shifted and n > w else 0 for n, w in zip(z.shape, window, strict=False)]
    patches = list(itertools.product(*map(range, z.shape[:3])))
    members = {}
    for patch in patches:
        number = tuple((i - start) // w for i, start, w in zip(patch, starts, window, strict=True))
        members.setdefault(number, []).append(patch)
    out = np.zeros_like(z)
    for keys in members.values():
        index = tuple(np.array(keys).T)
        for query in keys:
            displacement = np.array(query) - np.array(keys) + np.array(window) - 1
            bias = parameters["table"][np.ravel_multi_index(tuple(displacement.T), [2 * w - 1 for w in window])]
            s = [
                attend_with_dictionary(
                    parameters.get("dictionary"), q[query][a], k[index][:, a], v[index][:, a], heads, a, bias[:, a]
                )
                for a in range(heads)
            ]
            out[query] = linear(parameters["out"], np.concatenate(s))
    return out


def cvt(parameters, video, *, heads: int, depths, joint: str = "last", scale: str = "width", gelu: str = "exact"):
    """Returns the logits of a clip (t, y, x, 3): three stages, each a convolution, LN and blocks (CvT sec. 3).

    The last stage has class tokens: one for the clip where it attends over all frames, otherwise one for each frame,
    and the mean of their logits.
    """
    encoder, z = parameters["encoder"], video
    layers = iter(blocks(encoder["stages"]))
    stems, widening = ((4, 2), (2, 1), (2, 1)), (1, 3, 6)  # (stride, padding) of each stage; its heads
    class_tokens = np.zeros((0, 1))
    for stage, (stride, padding) in enumerate(stems):
        embedding = encoder["embeddings"][stage]
        convolution = embedding["convolution"]
        z = np.array([convolve(frame, convolution["kernel"], (stride,) * 2, (padding,) * 2) for frame in z])
        z = layer_norm(embedding["norm"], z + convolution["bias"], EPSILON)
        if "time" in embedding:  # of the first stage that attends over all frames
            z = z + embedding["time"][:, None, None]
        class_tokens = np.zeros((0, z.shape[-1]))
        if stage == 2:
            class_tokens = np.tile(encoder["class_token"], (len(video) if joint == "none" else 1, 1))
        is_joint = joint == "all" or joint == "last" and stage == 2
        for _ in range(depths[stage]):
            sublayer, last = next(layers)
            update = convolutional_attention(sublayer, z, class_tokens, heads * widening[stage], is_joint, scale)
            z, class_tokens = (
                mlp(last, x + dx, EPSILON, GELUS[gelu]) for x, dx in zip((z, class_tokens), update, strict=True)
            )
    return linear(parameters["head"], layer_norm(encoder["norm"], class_tokens, EPSILON)).mean(axis=0)


def convolutional_attention(parameters, z, class_tokens, heads: int, is_joint: bool, scale: str):
    """Returns the updates of z (t, y, x, d) and of class tokens (c, d).

    q, k and v are W conv(LN z), with k and v at a stride of 2 (CvT eq. 2). Class tokens are not convolved. Scores are
    divided by sqrt(d) as in the authors' code, or by sqrt(d_h).
    """
    groups = [range(len(z))] if is_joint else [[t] for t in range(len(z))]
    parts = []
    for near, project, stride in zip((0, 1, 2), (0, 1, 2), (1, 2, 2), strict=True):
        near, project = parameters["near"][near], parameters["qkv"][project]
        x = layer_norm(parameters["norm"], z, EPSILON)
        x = np.array([convolve(frame, near["convolution"]["kernel"], (stride,) * 2, (1, 1)) for frame in x])
        x = x * near["scale"] + near["bias"]
        rows = [x[list(group)].reshape(-1, x.shape[-1]) for group in groups]
        if len(class_tokens):
            normalised = layer_norm(parameters["norm"], class_tokens, EPSILON)
            rows = [np.concatenate([patches, token[None]]) for patches, token in zip(rows, normalised, strict=True)]
        parts.append([split_heads(linear(project, patches), heads) for patches in rows])
    factor = 1 / math.sqrt(heads) if scale == "width" else 1.0
    updates = []
    for q, k, v in zip(*parts, strict=True):
        entries = parameters.get("dictionary")
        s = [attend_with_dictionary(entries, factor * q[:, a], k[:, a], v[:, a], heads, a) for a in range(heads)]
        updates.append(linear(parameters["out"], np.concatenate(s, axis=-1)))
    count = len(updates[0]) - bool(len(class_tokens))
    patches = np.concatenate([update[:count] for update in updates]).reshape(z.shape)
    return patches, np.array([update[count] for update in updates]) if len(class_tokens) else class_tokens
