"""Layers that the reference models share: NumPy, one clip, no module of the library.

The references follow the equations of the papers, token by token where that is clearest. They read the parameters of
the library's models by their paths, as trees of float64 arrays. A linear map has `kernel` (inputs, outputs) and `bias`.
The kernel of q, k and v holds W_Q, W_K and W_V side by side, and each of these holds its heads side by side.
"""

import itertools
import math

import numpy as np

CLASS = (0, 0)  # the class token of a clip, as the papers count it; patches are (p, t) from (1, 1) on


def linear(parameters, x):
    return x @ parameters["kernel"] + parameters["bias"]


def layer_norm(parameters, x, epsilon: float = 1e-6):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * parameters["scale"] + parameters["bias"]


def gelu(x):
    """Returns x Phi(x)."""
    return x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    """Returns the approximation of GELU with which ViViT was trained."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_quick(x):
    """Returns x / (1 + exp(-1.702 x)), the approximation of GELU in the code of CvT's authors."""
    return x / (1 + np.exp(-1.702 * x))


GELUS = {"exact": gelu, "tanh": gelu_tanh, "quick": gelu_quick}


def feed_forward(parameters, x, activation=gelu):
    return linear(parameters["out"], activation(linear(parameters["wide"], x)))


def mlp(parameters, x, epsilon: float = 1e-6, activation=gelu):
    """Returns FFN(LN(x)) + x, the second line of MEViT eq. 5."""
    return feed_forward(parameters, layer_norm(parameters["norm"], x, epsilon), activation) + x


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def split_heads(x, heads: int):
    """Returns (..., h, d / h) of (..., d)."""
    return x.reshape(*x.shape[:-1], heads, -1)


def attend(q, k, v):
    """Returns softmax(q k^T / sqrt(d_h)) v of one head: q (d_h) or (n, d_h), k and v (m, d_h)."""
    return softmax(q @ k.T / math.sqrt(q.shape[-1])) @ v


def attend_with_dictionary(entries, q, k, v, heads: int, a: int, bias=0.0):
    """Returns `attend` of head a, with HaViT's dictionary in the same softmax (HaViT eq. 7) unless it is None.

    Args:
        entries: `keys` and `values` (n, d), which neither a norm nor a projection precedes.
        q, k, v: (..., d_h) of head a.
        bias: added to the scores of k.
    """
    scores = q @ k.T / math.sqrt(q.shape[-1]) + bias
    if entries is not None:
        k_e, v_e = (split_heads(entries[name], heads)[:, a] for name in ("keys", "values"))
        scores = np.concatenate([scores, q @ k_e.T / math.sqrt(q.shape[-1])], axis=-1)
        v = np.concatenate([v, v_e])
    return softmax(scores) @ v


def convolve(x, kernel, stride, padding):
    """Returns the convolution of x (..., c), on as many axes as the kernel (..., c, d) has sides, padded with zeros.

    A kernel (..., 1, c) acts on each channel by itself.
    """
    sizes = kernel.shape[:-2]
    padded = np.pad(x, [(p, p) for p in padding] + [(0, 0)])
    counts = [(n - size) // s + 1 for n, size, s in zip(padded.shape, sizes, stride, strict=False)]
    is_depthwise = kernel.shape[-2] == 1 < x.shape[-1]
    out = np.zeros((*counts, kernel.shape[-1]))
    for offset in itertools.product(*map(range, sizes)):
        place = tuple(slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, stride, counts, strict=True))
        out += padded[place] * kernel[offset][0] if is_depthwise else padded[place] @ kernel[offset]
    return out


def blocks(stages):
    """Returns the parameters of every block in order: a list of its sublayers each."""

    def depth(tree):
        return depth(next(iter(tree.values()))) if isinstance(tree, dict) else len(tree)

    def layer(tree, i):
        return {name: layer(branch, i) for name, branch in tree.items()} if isinstance(tree, dict) else tree[i]

    stacks = [stages[i]["layers"]["sublayers"] for i in sorted(stages)]
    return [[layer(stack[j], i) for j in sorted(stack)] for stack in stacks for i in range(depth(stack))]


def patches(video, size: int):
    """Returns the pixels (t, n, size^2 3) of the patches of a clip (t, y, x, 3), row by row."""
    t, rows, columns = video.shape[0], video.shape[1] // size, video.shape[2] // size
    return np.array(
        [
            [
                video[frame, row * size : (row + 1) * size, column * size : (column + 1) * size].ravel()
                for row in range(rows)
                for column in range(columns)
            ]
            for frame in range(t)
        ]
    )


def tubelets(video, size: int, frames: int):
    """Returns the pixels (t / frames, n, frames size^2 3) of patches of several frames (ViViT sec. 3.2)."""
    of_frames = patches(video, size)
    return [np.concatenate(of_frames[t : t + frames], axis=1) for t in range(0, len(of_frames), frames)]


def embed(encoder, video, patch_size: int, patch_frames: int = 1):
    """Returns ({(p, t): z_{p,t}}, class token) of a clip: z_{p,t} = E x_{p,t} + e_p + e_t (MEViT eq. 1).

    The position embedding is a sum of one in space and one in time. Row 0 of the one in space is the class token's.
    """
    embedding = encoder["embedding"]
    z = {}
    for t, frame in enumerate(tubelets(video, patch_size, patch_frames), start=1):
        for p, x in enumerate(frame, start=1):
            z[p, t] = linear(embedding["patch"], x) + embedding["space"][p] + embedding["time"][t - 1]
    return z, encoder["class_token"] + embedding["space"][0]


def project(parameters, z, heads: int):
    """Returns {token: (q, k, v)} of tokens {token: z}, each (A, d_h): W_{Q/K/V}^{(a)} LN(z) for all heads a."""
    return {
        token: [
            split_heads(part, heads)
            for part in np.split(linear(parameters["qkv"], layer_norm(parameters["norm"], x)), 3)
        ]
        for token, x in z.items()
    }


def queries_and_keys(z, keys, class_is_key: bool = True, class_is_query: bool = True):
    """Returns pairs (query, its keys) of attention in which every query (p, t) attends to the patches `keys(p, t)`.

    A class token, if there is one, is one more key of every query. As a query it attends to itself and to each set of
    keys, once for each: the equations give it neither a place nor a frame, and TimeSformer's code copies it to every
    frame and takes the mean of the copies.
    """
    shared = [CLASS] if class_is_key and CLASS in z else []
    pairs = [((p, t), shared + keys(p, t)) for p, t in z if (p, t) != CLASS]
    if class_is_query and CLASS in z:
        pairs += [(CLASS, list(distinct)) for distinct in dict.fromkeys(tuple(its_keys) for _, its_keys in pairs)]
    return pairs


def attention(parameters, z, heads: int, pairs):
    """Returns {query: W_O [s^1 ... s^A]} (MEViT eq. 2-5), the mean for a query that has several sets of keys.

    Args:
        z: {token: its vector (d)}.
        pairs: (query, the tokens that are its keys), see `queries_and_keys`.
    """
    projected = project(parameters, z, heads)
    updates = {}
    for query, keys in pairs:
        q = projected[query][0]
        k, v = (np.array([projected[key][part] for key in keys]) for part in (1, 2))
        s = [attend(q[a], k[:, a], v[:, a]) for a in range(heads)]
        updates.setdefault(query, []).append(linear(parameters["out"], np.concatenate(s)))
    return {query: sum(copies) / len(copies) for query, copies in updates.items()}


def class_attention(parameters, z, heads: int):
    """Returns W_O [s^1 ... s^A] of the class token, whose keys are all patches but not itself (MEViT eq. 10)."""
    q = split_heads(linear(parameters["q"], layer_norm(parameters["norm"], z[CLASS])), heads)
    keys_values = [
        np.split(linear(parameters["kv"], layer_norm(parameters["norm"], x)), 2)
        for token, x in z.items()
        if token != CLASS
    ]
    k, v = (split_heads(np.array(part), heads) for part in zip(*keys_values, strict=True))
    return linear(parameters["out"], np.concatenate([attend(q[a], k[:, a], v[:, a]) for a in range(heads)]))


def add(z, updates):
    """Returns z with the updates added."""
    return {token: x + updates[token] if token in updates else x for token, x in z.items()}


def classify(parameters, token):
    """Returns the logits of a class token: a linear map of LN(z) (MEViT eq. 9)."""
    return linear(parameters["head"], layer_norm(parameters["encoder"]["norm"], token))
