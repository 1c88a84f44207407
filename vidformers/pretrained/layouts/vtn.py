"""VTN of its authors (projects/vtn in bomri/SlowFast): a ViT of timm and layers of Hugging Face's Longformer."""

from vidformers.pretrained.layouts import timm
from vidformers.pretrained.layouts.structure import Names, Transformer, has

recognised = has("temporal_encoder.embeddings.position_embeddings.weight", "backbone.blocks.0.attn.qkv.weight")


def read(names) -> Transformer:
    """Its class token over frames joins the readout; the frames' own is the backbone's."""
    embeddings = "temporal_encoder.embeddings"

    def layer(number):
        at = f"temporal_encoder.encoder.layer.{number}"
        own = f"{at}.attention.self"
        return [
            {
                "qkv": names.linear(*(f"{own}.{part}" for part in ("query", "key", "value"))),
                "q_global": names.linear(f"{own}.query_global"),
                "kv_global": names.linear(f"{own}.key_global", f"{own}.value_global"),
                "out": names.linear(f"{at}.attention.output.dense"),
                "norm": names.norm(f"{at}.attention.output.LayerNorm"),
            },
            {
                "wide": names.linear(f"{at}.intermediate.dense"),
                "out": names.linear(f"{at}.output.dense"),
                "norm": names.norm(f"{at}.output.LayerNorm"),
            },
        ]

    backbone = Names(names.arrays, f"{names.prefix}backbone.", used=names.used)
    source = timm.read(backbone)
    if f"{embeddings}.position_ids" in names:
        names(f"{embeddings}.position_ids")  # 0, 1, ..., which old versions of the library saved
    source.layout, source.head = "VTN", names.head("mlp_head.4")
    source.readout = {
        "class_token": names("cls_token")[0, 0],
        "norm": names.norm(f"{embeddings}.LayerNorm"),
        "position": names(f"{embeddings}.position_embeddings.weight"),
        "token_type": names(f"{embeddings}.token_type_embeddings.weight"),
        "layers": [layer(i) for i in range(names.count(r"temporal_encoder\.encoder\.layer\.(\d+)\."))],
        "head_norm": names.norm("mlp_head.0"),
        "head": names.linear("mlp_head.1"),
    }
    source.unsaid = ("The file does not say how far frames see: model.window must, 18 in its authors' configs.",)
    return source
