"""TimeSformer from its equations, and the joint model of its authors and of ViViT.

Papers: Bertasius, Wang and Torresani, "Is Space-Time Attention All You Need for Video Understanding?", 2021.
Arnab et al., "ViViT: A Video Vision Transformer", 2021.
"""

from papers.layers import (
    CLASS,
    GELUS,
    add,
    attention,
    blocks,
    classify,
    embed,
    linear,
    mlp,
    queries_and_keys,
    tubelets,
)


def divided(parameters, video, *, heads: int, patch_size: int, depth: int):
    """Returns the logits of a clip (t, y, x, 3): time attention, then space attention (TimeSformer eq. 10, 11), MLP.

    As in the authors' code the class token takes no part in time attention, whose output passes one more linear map.
    """
    z, class_token = embed(parameters["encoder"], video, patch_size)
    places, frames = (sorted(set(axis)) for axis in zip(*z, strict=True))
    z[CLASS] = class_token
    layers = blocks(parameters["encoder"]["stages"])
    assert len(layers) == depth
    for time, space, last in layers:
        pairs = queries_and_keys(z, lambda p, t: [(p, s) for s in frames], class_is_key=False, class_is_query=False)
        z = add(z, {query: linear(time["extra"], x) for query, x in attention(time, z, heads, pairs).items()})
        z = add(z, attention(space, z, heads, queries_and_keys(z, lambda p, t: [(q, t) for q in places])))
        z = {token: mlp(last, x) for token, x in z.items()}
    return classify(parameters, z[CLASS])


def joint(
    parameters,
    video,
    *,
    heads: int,
    patch_size: int,
    depth: int,
    patch_frames: int = 1,
    positions: str = "separate",
    gelu: str = "exact",
):
    """Returns the logits of a clip: every token attends to every token (TimeSformer eq. 5-9; ViViT's model 1)."""
    if positions == "joint":
        z, class_token = _embed_tubelets(parameters["encoder"], video, patch_size, patch_frames)
    else:
        z, class_token = embed(parameters["encoder"], video, patch_size, patch_frames)
    keys = list(z)
    z[CLASS] = class_token
    layers = blocks(parameters["encoder"]["stages"])
    assert len(layers) == depth
    for sublayer, last in layers:
        z = add(z, attention(sublayer, z, heads, queries_and_keys(z, lambda p, t: keys)))
        z = {token: mlp(last, x, activation=GELUS[gelu]) for token, x in z.items()}
    return classify(parameters, z[CLASS])


def _embed_tubelets(encoder, video, patch_size: int, patch_frames: int):
    """Returns what `embed` does, of patches of several frames with one position embedding each (ViViT sec. 3.2)."""
    embedding, z = encoder["embedding"], {}
    for t, pixels in enumerate(tubelets(video, patch_size, patch_frames), start=1):
        for p, x in enumerate(pixels, start=1):
            z[p, t] = linear(embedding["patch"], x) + embedding["space"][1 + len(z)]
    return z, encoder["class_token"] + embedding["space"][0]
