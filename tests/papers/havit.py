"""HaViT from its equations.

Paper: Li, Zhuang, Gao and Wang, "HaViT: Hybrid-Attention Based Vision Transformer for Video Classification", 2022.
"""

import math

import numpy as np
from papers.layers import (
    CLASS,
    add,
    blocks,
    class_attention,
    classify,
    embed,
    linear,
    mlp,
    project,
    queries_and_keys,
    split_heads,
)


def logits(
    parameters,
    video,
    *,
    heads: int,
    patch_size: int,
    depth: int,
    attention: str = "divided",
    kernel: str = "softmax",
    cosine_index: str = "sequence",
    hybrid: str = "combined",
    dictionary: int = 0,
    class_blocks: int = 2,
    class_token: str = "late",
    temporal_fc: bool = False,
    share_dictionary: bool = False,
    dictionary_per: str = "layer",
    external_mlp: bool = False,
):
    """Returns the logits of a clip (t, y, x, 3): eq. 1-7 in `depth` blocks, then class attention (eq. 8, 9).

    The internal attention is joint (eq. 2) or divided (eq. 5, then eq. 4; the paper gives no order). The paper does not
    say which attentions and layers share a dictionary, nor which parameters the feed-forward network of eq. 6 has.
    """
    z, token = embed(parameters["encoder"], video, patch_size)
    places, frames = (sorted(set(axis)) for axis in zip(*z, strict=True))
    if class_token == "input":
        z[CLASS] = token
    keys_of = {
        "time": lambda p, t: [(p, s) for s in frames],
        "space": lambda p, t: [(q, t) for q in places],
        "joint": lambda p, t: [(q, s) for s in frames for q in places],
    }
    layers = blocks(parameters["encoder"]["stages"])
    assert len(layers) == depth + class_blocks
    of_model = parameters["encoder"]["stages"][0]["dictionary"] if dictionary_per == "model" else {}
    for *attentions, last in layers[:depth]:
        first = attentions[0]
        for name, sublayer in zip(("time", "space") if attention == "divided" else ("joint",), attentions, strict=True):
            pairs = queries_and_keys(z, keys_of[name], class_is_query=name != "time")
            entries = None
            if of_model:
                entries = of_model["all" if share_dictionary else name]
            elif dictionary:
                entries = (first if share_dictionary else sublayer)["dictionary"]
            assert entries is None or ("mlp" in entries) == external_mlp
            similarity = similarity_of(kernel, cosine_index, len(places), len(frames), pairs)
            updates = hybrid_attention(sublayer, z, heads, pairs, similarity, entries, hybrid)
            if temporal_fc and name == "time":  # not in the equations: TimeSformer's linear map after W_O
                updates = {query: linear(sublayer["extra"], x) for query, x in updates.items()}
            z = add(z, updates)
        z = {query: mlp(last, x) for query, x in z.items()}
    z[CLASS] = z.get(CLASS, token)
    for sublayer, last in layers[depth:]:
        z[CLASS] = mlp(last, z[CLASS] + class_attention(sublayer, z, heads))
    return classify(parameters, z[CLASS])


def similarity_of(kernel: str, cosine_index: str, places: int, frames: int, pairs):
    """Returns similarity(q, k, query, key), which the activation sigma of eq. 2 normalises over the keys.

    softmax: exp(q.k / sqrt(d_h)). relu: ReLU(q).ReLU(k), the linear activation of Table 6. cosine: this times
    cos(pi/2 (i - j)/m), the re-weighting of cosFormer [38], where i and j are the ranks of query and key among the m
    keys, by frame and place, or with the index 't' their frames of m frames. An entry of the dictionary has no rank
    (`key` is None), so that its cosine is 1.
    """
    if kernel == "softmax":
        return lambda q, k, query, key: math.exp(q @ k / math.sqrt(len(q)))
    length = frames if cosine_index == "t" else len(pairs[0][1])
    rank = {}
    for _, keys in pairs:
        by_time = sorted((key for key in keys if key != CLASS), key=lambda key: (key[1], key[0]))
        rank |= {key: key[1] if cosine_index == "t" else i for i, key in enumerate(by_time)}

    def similarity(q, k, query, key):
        product = np.maximum(q, 0) @ np.maximum(k, 0)
        if kernel == "relu" or key is None:
            return product
        return product * math.cos(math.pi / 2 * (rank[query] - rank[key]) / length)

    return similarity


def weighted(similarities, values):
    """Returns the sum of alpha_i v_i with alpha_i = similarity_i / their sum. ReLU features may all be zero."""
    similarities = np.array(similarities)
    return similarities @ np.array(values) / max(similarities.sum(), 1e-6)


def hybrid_attention(parameters, z, heads: int, pairs, similarity, entries, hybrid: str):
    """Returns {query: W_O of the heads} of internal and external attention (sec. 3.2).

    Args:
        pairs: (query, its keys); see `queries_and_keys`.
        similarity: see `similarity_of`.
        entries: K^e and V^e, `keys` and `values` (n, d); None for internal attention alone.
        hybrid: 'combined' (eq. 7): one normalisation over internal and external keys. The others add external attention
            (eq. 6) to the internal one ('simplified'), give each heads of its own ('multi_view'), or divide the heads
            ('split_heads'). The last line of eq. 6 acts on the external heads, side by side, if the entries have an
            `mlp`.
    """
    projected, updates = project(parameters, z, heads), {}
    for query, keys in pairs:
        internal_heads, external_heads = [], []
        for a in range(heads):
            q = projected[query][0][a]
            internal = [similarity(q, projected[key][1][a], query, key) for key in keys]
            values = [projected[key][2][a] for key in keys]
            if entries is None:
                internal_heads.append(weighted(internal, values))
                continue
            external_keys, external_values = (split_heads(entries[name], heads)[:, a] for name in ("keys", "values"))
            external = [similarity(q, k, query, None) for k in external_keys]
            if hybrid == "combined":
                internal_heads.append(weighted(internal + external, [*values, *external_values]))
            else:
                internal_heads.append(weighted(internal, values))
                external_heads.append(weighted(external, external_values))
        if hybrid == "split_heads" and entries is not None:
            internal_heads, external_heads = internal_heads[: heads // 2], external_heads[heads // 2 :]
        if entries is not None and "mlp" in entries:
            external_heads = np.split(mlp(entries["mlp"], np.concatenate(external_heads)), len(external_heads))
        if hybrid == "simplified" and entries is not None:
            s = [i + e for i, e in zip(internal_heads, external_heads, strict=True)]
        else:
            s = [*internal_heads, *external_heads]
        updates.setdefault(query, []).append(linear(parameters["out"], np.concatenate(s)))
    return {query: sum(copies) / len(copies) for query, copies in updates.items()}
