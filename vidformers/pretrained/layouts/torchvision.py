"""Video Swin and Swin of torchvision.

Names: `torchvision/models/video/swin_transformer.py` and `torchvision/models/swin_transformer.py`.
"""

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import IMAGENET, SwinWeights
from vidformers.pretrained.layouts.swin import read_block


def read(arrays) -> SwinWeights:
    """Converts the arrays of a Video Swin.

    `features` has stages at even indices and the patch merging between them at odd indices.
    """
    return _read(arrays, "Video Swin of torchvision", 0, "patch_embed.proj", "patch_embed.norm")


def read_images(arrays) -> SwinWeights:
    """Converts the arrays of a Swin. `features` starts with the patch embedding, then stages and patch merging."""
    return _read(arrays, "Swin of torchvision", 1, "features.0.0", "features.0.2")


def _read(arrays, layout, first, patch, patch_norm) -> SwinWeights:
    """Converts the arrays. `first` is the index of the first stage in `features`."""
    places = range(arrays.layer_count(r"features\.(\d+)\."))[first:]
    blocks = [[f"features.{i}.{j}" for j in range(arrays.layer_count(rf"features\.{i}\.(\d+)\."))] for i in places[::2]]
    return SwinWeights(
        layout=layout,
        patch=arrays.convolution(patch),
        embeddings=[
            {"norm": arrays.norm(patch_norm)},
            *(arrays.merging(f"features.{i}") for i in places[1::2]),
        ],
        stages=[[read_block(arrays, block, ("norm2", "mlp.0", "mlp.3")) for block in stage] for stage in blocks],
        norm=arrays.norm("norm"),
        position_index=arrays.first(f"{block}.attn.relative_position_index" for stage in blocks for block in stage),
        head=arrays.head("head"),
        normalisation=IMAGENET,
    )


register(
    "Video Swin of torchvision",
    read,
    "features.0.0.attn.relative_position_bias_table",
    "patch_embed.proj.weight",
)
register(
    "Swin of torchvision",
    read_images,
    "features.1.0.attn.relative_position_bias_table",
    "features.0.0.weight",
)
