"""Swin of timm and Hugging Face, and Swin and Video Swin of their authors. torchvision's names are in `torchvision`.

Names: `timm/models/swin_transformer.py`, `modeling_swin.py` of transformers, `models/swin_transformer.py` of
microsoft/Swin-Transformer, and `mmaction/models/backbones/swin_transformer.py` of
SwinTransformer/Video-Swin-Transformer.
"""

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import HUGGING_FACE_MLP, IMAGENET, TIMM_MLP, SwinWeights


def read(arrays) -> SwinWeights:
    """Converts the arrays of timm or of the authors. The kernel of the patches tells images from video.

    The merging of patches belongs to the stage before it in the authors' files and to the stage after it in timm's.
    """
    depths = arrays.stage_depths(r"layers\.", r"\.blocks\.")
    blocks = [[f"layers.{i}.blocks.{j}" for j in range(depth)] for i, depth in enumerate(depths)]
    first = 0 if "layers.0.downsample.norm.weight" in arrays else 1
    merges = [f"layers.{first + i}.downsample" for i in range(len(depths) - 1)]
    patch = arrays.convolution("patch_embed.proj")
    is_video = patch["kernel"].ndim == 5
    without_backbone = arrays.with_prefix(arrays.prefix.removesuffix("backbone."))
    head = without_backbone.head("cls_head.fc_cls") or arrays.head("head.fc") or arrays.head("head")
    for stage in blocks:
        for block in stage:  # read to mark it as used: the mask of shifted windows, which depends on the image size
            arrays.get(f"{block}.attn_mask")
    return SwinWeights(
        layout="Video Swin of its authors" if is_video else "Swin of timm or its authors",
        patch=patch,
        embeddings=[{"norm": arrays.norm("patch_embed.norm")}, *map(arrays.merging, merges)],
        stages=[[read_block(arrays, block) for block in stage] for stage in blocks],
        norm=arrays.norm("norm"),
        position_index=arrays.first(f"{block}.attn.relative_position_index" for stage in blocks for block in stage),
        head=head,
        normalisation=IMAGENET,
    )


def read_block(arrays, block, mlp=TIMM_MLP):
    """Returns the arrays of a block. `mlp` has the names in its MLP."""
    return {
        "attention": {
            "norm": arrays.norm(f"{block}.norm1"),
            "qkv": arrays.linear(f"{block}.attn.qkv"),
            "out": arrays.linear(f"{block}.attn.proj"),
            "table": arrays[f"{block}.attn.relative_position_bias_table"],
        },
        "mlp": arrays.mlp(block, mlp),
    }


def read_hugging_face(arrays) -> SwinWeights:
    """Converts the arrays of Hugging Face."""
    depths = arrays.stage_depths(r"encoder\.layers\.", r"\.blocks\.")
    blocks = [[f"encoder.layers.{i}.blocks.{j}" for j in range(depth)] for i, depth in enumerate(depths)]
    merges = [f"encoder.layers.{i}.downsample" for i in range(len(depths) - 1)]
    return SwinWeights(
        layout="Swin of Hugging Face",
        patch=arrays.convolution("embeddings.patch_embeddings.projection"),
        embeddings=[{"norm": arrays.norm("embeddings.norm")}, *map(arrays.merging, merges)],
        stages=[[_block_of_hugging_face(arrays, block) for block in stage] for stage in blocks],
        norm=arrays.norm("layernorm"),
        position_index=arrays.first(
            f"{block}.attention.self.relative_position_index" for stage in blocks for block in stage
        ),
        head=arrays.with_prefix("").head("classifier"),
        normalisation=IMAGENET,
        not_loaded=arrays.mark_pretraining_arrays(),
    )


def _block_of_hugging_face(arrays, block):
    attention = f"{block}.attention.self"
    return {
        "attention": {
            "norm": arrays.norm(f"{block}.layernorm_before"),
            "qkv": arrays.linear(*(f"{attention}.{name}" for name in ("query", "key", "value"))),
            "out": arrays.linear(f"{block}.attention.output.dense"),
            "table": arrays[f"{attention}.relative_position_bias_table"],
        },
        "mlp": arrays.mlp(block, HUGGING_FACE_MLP),
    }


register(
    "Swin of timm and its authors, Video Swin of its authors",
    read,
    "layers.0.blocks.0.attn.relative_position_bias_table",
    "patch_embed.proj.weight",
)
register(
    "Swin of Hugging Face",
    read_hugging_face,
    "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table",
    "embeddings.patch_embeddings.projection.weight",
)
