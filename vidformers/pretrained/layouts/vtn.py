"""VTN of its authors (projects/vtn in bomri/SlowFast): a ViT of timm and layers of Hugging Face's Longformer."""

from vidformers.pretrained.layouts import timm
from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import TIMESFORMER, TransformerWeights

_EMBEDDINGS = "temporal_encoder.embeddings"


def read(arrays) -> TransformerWeights:
    """Converts the arrays. The readout has a class token for the clip, the backbone has one for each frame."""
    weights = timm.read(arrays.with_prefix(f"{arrays.prefix}backbone."))
    arrays.get(
        f"{_EMBEDDINGS}.position_ids"
    )  # read to mark it as used: 0, 1, ..., saved by old versions of transformers
    layers = arrays.layer_count(r"temporal_encoder\.encoder\.layer\.(\d+)\.")
    weights.layout, weights.head = "VTN", arrays.head("mlp_head.4")
    weights.normalisation = TIMESFORMER  # DATA.MEAN and DATA.STD in slowfast/config/defaults.py, which VTN's file keeps
    weights.readout = {
        "class_token": arrays["cls_token"][0, 0],
        "norm": arrays.norm(f"{_EMBEDDINGS}.LayerNorm"),
        "position": arrays[f"{_EMBEDDINGS}.position_embeddings.weight"],
        "token_type": arrays[f"{_EMBEDDINGS}.token_type_embeddings.weight"],
        "layers": [_layer(arrays, f"temporal_encoder.encoder.layer.{i}") for i in range(layers)],
        "head_norm": arrays.norm("mlp_head.0"),
        "head": arrays.linear("mlp_head.1"),
    }
    weights.remarks = (
        "The file does not say how many frames the attention window has. Set model.window; it is 18 in the configs of "
        "VTN's authors.",
    )
    return weights


def _layer(arrays, layer):
    """Returns the two sublayers of a layer over frames."""
    attention = f"{layer}.attention.self"
    return [
        {
            "qkv": arrays.linear(*(f"{attention}.{name}" for name in ("query", "key", "value"))),
            "q_global": arrays.linear(f"{attention}.query_global"),
            "kv_global": arrays.linear(f"{attention}.key_global", f"{attention}.value_global"),
            "out": arrays.linear(f"{layer}.attention.output.dense"),
            "norm": arrays.norm(f"{layer}.attention.output.LayerNorm"),
        },
        {
            "wide": arrays.linear(f"{layer}.intermediate.dense"),
            "out": arrays.linear(f"{layer}.output.dense"),
            "norm": arrays.norm(f"{layer}.output.LayerNorm"),
        },
    ]


register(
    "VTN of its authors",
    read,
    "temporal_encoder.embeddings.position_embeddings.weight",
    "backbone.blocks.0.attn.qkv.weight",
)
