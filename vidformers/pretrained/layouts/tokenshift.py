"""TokenShift of its authors (VideoNetworks/TokShift-Transformer), and the ViT in PyTorch that it was made from."""

import numpy as np

from vidformers.pretrained.layouts.structure import HALF, Transformer, has

recognised = has("transformer.encoder.layer.0.attn.query.weight", "transformer.embeddings.patch_embeddings.weight")


def read(names) -> Transformer:
    """Shifts have no arrays, so that a ViT and a TokenShift look the same."""

    def block(number):
        at = f"transformer.encoder.layer.{number}"
        return {
            "space": {
                "norm": names.norm(f"{at}.attention_norm"),
                "out": names.linear(f"{at}.attn.out"),
                "qkv": names.linear(*(f"{at}.attn.{part}" for part in ("query", "key", "value"))),
            },
            "mlp": {
                "norm": names.norm(f"{at}.ffn_norm"),
                "wide": names.linear(f"{at}.ffn.fc1"),
                "out": names.linear(f"{at}.ffn.fc2"),
            },
        }

    blocks = [block(i) for i in range(names.count(r"transformer\.encoder\.layer\.(\d+)\."))]
    at = "transformer.embeddings"
    return Transformer(
        layout="TokenShift",
        patch=names.convolution(f"{at}.patch_embeddings"),
        classes=names(f"{at}.cls_token")[0],
        space=names(f"{at}.position_embeddings")[0],
        blocks=blocks,
        norm=names.norm("transformer.encoder.encoder_norm"),
        head=names.head("head"),
        future_first=True,
        normalisation=HALF,
        unsaid=(
            "The file does not say what share of the channels was shifted: model.fold must, 4 in its authors' configs.",
        ),
    )


def past_first(source: Transformer, channels: int) -> None:
    """Makes it one whose first `channels` channels come from the frame before, where those of the frame after did.

    The order of a transformer's channels has no meaning beside that, as long as all its arrays keep the same one.
    """
    order = np.arange(source.classes.shape[-1])
    order[: 2 * channels] = np.roll(order[: 2 * channels], channels)

    def norm(tree):
        return {name: array[order] for name, array in tree.items()}

    def rows(tree):
        return tree | {"kernel": tree["kernel"][order]}

    def columns(tree):
        return {name: array[..., order] for name, array in tree.items()}

    source.patch, source.norm = columns(source.patch), norm(source.norm)
    source.classes, source.space = source.classes[:, order], source.space[:, order]
    source.head = source.head and rows(source.head)
    source.blocks = [
        {
            kind: {"norm": norm(tree["norm"]), first: rows(tree[first]), "out": columns(tree["out"])}
            for kind, first, tree in (("space", "qkv", block["space"]), ("mlp", "wide", block["mlp"]))
        }
        for block in source.blocks
    ]
