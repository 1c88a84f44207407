"""Video Swin of torchvision. Names: `torchvision/models/video/swin_transformer.py`."""

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import IMAGENET, SwinWeights


def read(arrays) -> SwinWeights:
    """Converts the arrays. `features` has stages at even indices and the patch merging between them at odd indices."""
    places = range(arrays.layer_count(r"features\.(\d+)\."))
    stages = [
        [_block(arrays, f"features.{i}.{j}") for j in range(arrays.layer_count(rf"features\.{i}\.(\d+)\."))]
        for i in places[::2]
    ]
    merges = [
        {"norm": arrays.norm(f"features.{i}.norm"), "out": {"kernel": arrays[f"features.{i}.reduction.weight"].T}}
        for i in places[1::2]
    ]
    # Every block has the same position index. All of them are read, so that they are marked as used.
    indices = [
        arrays.get(f"features.{i}.{j}.attn.relative_position_index")
        for i, stage in zip(places[::2], stages, strict=True)
        for j in range(len(stage))
    ]
    return SwinWeights(
        layout="Video Swin of torchvision",
        patch=arrays.convolution("patch_embed.proj"),
        embeddings=[{"norm": arrays.norm("patch_embed.norm")}, *merges],
        stages=stages,
        norm=arrays.norm("norm"),
        position_index=next((index for index in indices if index is not None), None),
        head=arrays.head("head"),
        normalisation=IMAGENET,
    )


def _block(arrays, block):
    return {
        "attention": {
            "norm": arrays.norm(f"{block}.norm1"),
            "qkv": arrays.linear(f"{block}.attn.qkv"),
            "out": arrays.linear(f"{block}.attn.proj"),
            "table": arrays[f"{block}.attn.relative_position_bias_table"],
        },
        "mlp": {
            "norm": arrays.norm(f"{block}.norm2"),
            "wide": arrays.linear(f"{block}.mlp.0"),
            "out": arrays.linear(f"{block}.mlp.3"),
        },
    }


register(
    "Video Swin of torchvision",
    read,
    "features.0.0.attn.relative_position_bias_table",
    "patch_embed.proj.weight",
)
