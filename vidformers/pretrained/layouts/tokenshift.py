"""TokenShift of its authors (VideoNetworks/TokShift-Transformer), and the PyTorch ViT on which their code is based."""

import numpy as np

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import HALF, TransformerWeights


def read(arrays) -> TransformerWeights:
    """Converts the arrays. Shifts have no arrays, so a ViT and a TokenShift cannot be distinguished."""
    layers = arrays.layer_count(r"transformer\.encoder\.layer\.(\d+)\.")
    embeddings = "transformer.embeddings"
    return TransformerWeights(
        layout="TokenShift",
        patch=arrays.convolution(f"{embeddings}.patch_embeddings"),
        class_tokens=arrays[f"{embeddings}.cls_token"][0],
        space=arrays[f"{embeddings}.position_embeddings"][0],
        blocks=[_block(arrays, f"transformer.encoder.layer.{i}") for i in range(layers)],
        norm=arrays.norm("transformer.encoder.encoder_norm"),
        head=arrays.head("head"),
        future_first=True,
        normalisation=HALF,
        heads=arrays.number("num_attention_heads"),
        remarks=(
            "The file does not say which share of the channels was shifted. Set model.fold; it is 4 in the configs of "
            "TokenShift's authors.",
        ),
    )


def _block(arrays, block):
    return {
        "space": {
            "norm": arrays.norm(f"{block}.attention_norm"),
            "out": arrays.linear(f"{block}.attn.out"),
            "qkv": arrays.linear(*(f"{block}.attn.{name}" for name in ("query", "key", "value"))),
        },
        "mlp": arrays.mlp(block, ("ffn_norm", "ffn.fc1", "ffn.fc2")),
    }


def past_first(weights: TransformerWeights, channels: int) -> None:
    """Swaps the first `channels` channels with the next `channels`, so that the past comes before the future.

    This library's `TokenShift` takes the first channels from the previous frame, the authors' code from the next frame.
    Otherwise the order of a transformer's channels has no meaning, as long as all arrays have the same order.
    """
    order = np.arange(weights.class_tokens.shape[-1])
    order[: 2 * channels] = np.roll(order[: 2 * channels], channels)

    def norm(tree):
        return {name: array[order] for name, array in tree.items()}

    def inputs(tree):
        return tree | {"kernel": tree["kernel"][order]}

    def outputs(tree):
        return {name: array[..., order] for name, array in tree.items()}

    weights.patch, weights.norm = outputs(weights.patch), norm(weights.norm)
    weights.class_tokens, weights.space = weights.class_tokens[:, order], weights.space[:, order]
    weights.head = weights.head and inputs(weights.head)
    weights.blocks = [
        {
            kind: {"norm": norm(tree["norm"]), first: inputs(tree[first]), "out": outputs(tree["out"])}
            for kind, first, tree in (("space", "qkv", block["space"]), ("mlp", "wide", block["mlp"]))
        }
        for block in weights.blocks
    ]


register(
    "TokenShift of its authors",
    read,
    "transformer.encoder.layer.0.attn.query.weight",
    "transformer.embeddings.patch_embeddings.weight",
)
