"""STAT from its equations.

Paper: Li, Xiong, Han and Guo, "Shrinking Temporal Attention in Transformers for Video Action Recognition", AAAI 2022.

The paper leaves the layout of the stages to an appendix that was not published. What the equations leave open is read
as in MViT-B without its first stage: see the docstrings. Frames of the stem's grid are counted from 0, and token 0 of a
frame is its class token.
"""

import numpy as np
from papers.layers import attend, blocks, convolve, feed_forward, gelu, layer_norm, linear, mlp, split_heads

# Strides (t, y, x) of the convolutions of Table 5. The five printed ones leave another grid than the text says;
# 'same_grid' keeps that of the three.
STRIDES = {
    (1, "same_grid"): [(2, 4, 4)],
    (3, "same_grid"): [(2, 2, 2), (1, 2, 2), (1, 2, 2)],
    (5, "same_grid"): [(2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)],
    (5, "literal"): [(2, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)],
}


def logits(
    parameters,
    video,
    *,
    heads: int,
    depths,
    window: int = 3,
    long_key: str = "class",
    frame_token: str = "class",
    stem_convs: int = 3,
    stem_strides: str = "same_grid",
    aggregation_layers: int = 1,
    pool_norm: str = "keys",
):
    """Returns the logits of a clip (t, y, x, 3): token embedding block, STA blocks, temporal aggregation block.

    With one convolution the stem is MViT's, and MViT's first stage of half the width stays before the stages.
    """
    encoder = parameters["encoder"]
    maps, classes = embed(encoder, video, STRIDES[stem_convs, stem_strides])
    if stem_convs == 1:
        depths, heads = (1, *depths), heads // 2
    layers = iter(blocks(encoder["stages"]))
    for stage, depth in enumerate(depths):
        for i in range(depth):
            sublayer, last = next(layers)
            # Keys have the grid of the last stage, since every stage halves that of its queries.
            stride = 2 ** (len(depths) - 1 - stage)
            pools = stage > 0 and i == 0
            options = (stride, pools, window, long_key, pool_norm)
            maps, classes = sta_block(sublayer, maps, classes, heads << stage, *options)
            widens = stage < len(depths) - 1 and i == depth - 1
            maps, classes = ((widening_mlp if widens else mlp)(last, x) for x in (maps, classes))
    assert next(layers, None) is None
    if frame_token == "mean":  # no class tokens, another reading of Table 3's "spatial avg-pooling"
        assert "class_token" not in encoder
        classes = layer_norm(encoder["norm"], maps).mean((1, 2))
    else:
        classes = layer_norm(encoder["norm"], classes)
    if not aggregation_layers:  # "average pooling" (Table 4)
        return linear(parameters["head"], classes.mean(axis=0))
    return linear(parameters["head"], aggregate(parameters["readout"], classes, heads << len(depths) - 1))


def embed(encoder, video, strides):
    """Returns the patches (n_t, n_h, n_w, n_c) and the class tokens (n_t, n_c) of the token embedding block.

    LN and GELU are between the convolutions. Positions in space and in time are added to patches and class tokens.
    """
    stem, x = encoder["embedding"], video
    for i, stride in enumerate(strides):
        if i:
            x = gelu(layer_norm(stem["norms"][i - 1], x))
        convolution = stem["convolutions"][i]
        padding = [size // 2 for size in convolution["kernel"].shape[:3]]
        x = convolve(x, convolution["kernel"], stride, padding) + convolution["bias"]
    token = encoder.get("class_token", 0.0)  # a model without class tokens has no key or output that is one
    places = stem["space"][1:].reshape(*x.shape[1:3], -1)
    maps = np.array([frame + places + time for frame, time in zip(x, stem["time"], strict=True)])
    return maps, np.array([token + stem["space"][0] + time for time in stem["time"]])


def convolution_pool(x, parameters, stride: int):
    """Returns P_CA of eq. 2 of the frames x (t, y, x, c): a 3 x 3 convolution of each channel."""
    return np.array([convolve(frame, parameters["kernel"], (stride, stride), (1, 1)) for frame in x])


def cells(x, size: int, offset: int, reduce):
    """Returns `reduce` over size x size places of one frame (y, x, c), at a stride of 2. Cells end with the frame."""

    def part(start):
        return slice(max(0, start - offset), start - offset + size)

    rows, columns = (range(0, n, 2) for n in x.shape[:2])
    return np.array([[reduce(x[part(r), part(c)], axis=(0, 1)) for c in columns] for r in rows])


def norm_after_pooling(parameters, x, heads: int, pool_norm: str, is_class: bool = False):
    """Returns pooled queries, keys or values (..., c), or those of class tokens, after the norm that follows.

    Eq. 2 and 6 have none. 'keys' normalises the keys and values of patches. 'mvit' also normalises class tokens and
    pooled queries, each head by itself, as MViT's code does.
    """
    if parameters is None or pool_norm == "none" or is_class and pool_norm != "mvit":
        return x
    if pool_norm == "mvit":
        return layer_norm(parameters["norm"], split_heads(x, heads)).reshape(x.shape)
    return layer_norm(parameters, x)


def sta_block(parameters, maps, classes, heads, stride, pools_queries, window, long_key, pool_norm):
    """Returns X_a of eq. 9 as patches (n_t, y, x, c) and class tokens (n_t, c).

    Where Q is pooled, X_in is max-pooled as in MViT; class tokens are never pooled. There is a linear map after the
    heads, and scores are divided by the root of the width of a head.
    """

    def norm(name, x, is_class=False):
        return norm_after_pooling(parameters.get(f"norm_{name}"), x, heads, pool_norm, is_class)

    def qkv(x):  # eq. 1
        return np.split(linear(parameters["qkv"], layer_norm(parameters["norm"], x)), 3, axis=-1)

    q, *patch_parts = qkv(maps)
    class_q, *class_parts = (norm(name, x, is_class=True) for name, x in zip("qkv", qkv(classes), strict=True))
    if pools_queries:
        q = norm("q", convolution_pool(q, parameters["pool_q"], 2))  # eq. 2
        maps = np.array([cells(frame, 3, 1, np.max) for frame in maps])
    channels, radius, frames = maps.shape[-1], window // 2, range(len(maps))
    current, short, long = {}, {}, {}
    for name, x, class_x in zip("kv", patch_parts, class_parts, strict=True):
        current[name] = norm(name, convolution_pool(x, parameters[f"pool_{name}"], stride))  # eq. 2
        short[name] = [cells(frame, 2, 0, np.mean).reshape(-1, channels) for frame in current[name]]  # eq. 3
        # Eq. 6, or Table 3's "spatial avg-pooling".
        long[name] = {"class": class_x, "mean": x.mean((1, 2)), "none": class_x[:0]}[long_key]
    out, class_out = np.zeros_like(maps), np.zeros_like(classes)
    for i in frames:
        near = [j for j in frames if j != i and abs(j - i) <= radius]  # the window of t_o frames without frame i
        keys, values = (  # eq. 7
            np.concatenate([current[x][i].reshape(-1, channels), *(short[x][j] for j in near), long[x]]) for x in "kv"
        )
        queries = np.concatenate([class_q[i][None], q[i].reshape(-1, channels)])
        by_head = zip(*(np.split(x, heads, axis=-1) for x in (queries, keys, values)), strict=True)
        s = linear(parameters["out"], np.concatenate([attend(*head) for head in by_head], axis=-1))  # eq. 8
        class_out[i], out[i] = s[0], s[1:].reshape(maps.shape[1:])
    return maps + out, classes + class_out


def widening_mlp(parameters, x):
    """Returns eq. 10 in the last block of a stage, whose MLP doubles the width.

    The residual is a linear map of LN X_a, as in MViT.
    """
    normalised = layer_norm(parameters["norm"], x)
    return linear(parameters["skip"], normalised) + feed_forward(parameters, normalised)


def aggregate(readout, classes, heads: int):
    """Returns LN x_cls after l_ta standard blocks over x_cls and all class tokens (temporal aggregation block)."""
    x = np.concatenate([readout["token"][None], classes])
    for i in sorted(readout["blocks"]):
        sublayer, last = (readout["blocks"][i]["sublayers"][j] for j in (0, 1))
        q, k, v = (
            split_heads(part, heads)
            for part in np.split(linear(sublayer["qkv"], layer_norm(sublayer["norm"], x)), 3, axis=-1)
        )
        s = np.concatenate([attend(q[:, a], k[:, a], v[:, a]) for a in range(heads)], axis=-1)
        x = mlp(last, x + linear(sublayer["out"], s))
    return layer_norm(readout["norm"], x[0])
