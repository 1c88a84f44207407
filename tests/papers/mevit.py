"""MEViT from its equations.

Paper: Li and Zhuang, "MEViT: Motion Enhanced Video Transformer for Video Classification", 2022.
"""

from papers.layers import (
    CLASS,
    add,
    attention,
    blocks,
    class_attention,
    classify,
    embed,
    linear,
    mlp,
    queries_and_keys,
)


def logits(
    parameters,
    video,
    *,
    heads: int,
    patch_size: int,
    depth: int,
    block_size: int = 2,
    motion_blocks: int,
    class_blocks: int = 1,
    order: str = "motion_space",
    class_in_motion: bool = True,
    class_queries_motion: bool = False,
    temporal_fc: bool = False,
    patch_frames: int = 1,
):
    """Returns the logits of a clip (t, y, x, 3).

    Eq. 1; `depth` blocks of eq. 8, 6 and 5, the first ones without eq. 8 (Table 3); eq. 10 and 5 in class attention,
    before which the class token is inserted (Table 2), or at the input if there is none; eq. 9.
    """
    z, class_token = embed(parameters["encoder"], video, patch_size, patch_frames)
    if not class_blocks:
        z[CLASS] = class_token
    columns = video.shape[2] // patch_size
    layers = blocks(parameters["encoder"]["stages"])
    assert len(layers) == depth + class_blocks
    for number, (*attentions, last) in enumerate(layers[:depth]):
        names = order.split("_") if number >= depth - motion_blocks else ["space"]
        for name, sublayer in zip(names, attentions, strict=True):
            if name == "space":
                updates = attention(sublayer, z, heads, queries_and_keys(z, space_keys(z)))
            else:
                keys = motion_keys(z, block_size, columns)
                pairs = queries_and_keys(z, keys, class_in_motion, class_queries_motion)
                updates = attention(sublayer, z, heads, pairs)
                if temporal_fc:  # not in the equations: TimeSformer's linear map after W_O
                    updates = {query: linear(sublayer["extra"], x) for query, x in updates.items()}
            z = add(z, updates)
        z = {token: mlp(last, x) for token, x in z.items()}
    if class_blocks:
        z[CLASS] = class_token
    for sublayer, last in layers[depth:]:
        z[CLASS] = mlp(last, z[CLASS] + class_attention(sublayer, z, heads))
    return classify(parameters, z[CLASS])


def space_keys(z):
    """Returns the keys of eq. 6 as a function: all patches of the frame t."""
    return lambda p, t: [key for key in z if key != CLASS and key[1] == t]


def motion_keys(z, block_size: int, columns: int):
    """Returns the keys of eq. 8 as a function: the patches in the block B of p, in every frame.

    Blocks start at the first row and column. Where they do not divide the grid, the last ones are smaller.
    """

    def block(p):
        row, column = divmod(p - 1, columns)
        return row // block_size, column // block_size

    members = {}
    for key in z:
        if key != CLASS:
            members.setdefault(block(key[0]), []).append(key)
    return lambda p, t: members[block(p)]
