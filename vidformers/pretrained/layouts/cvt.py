"""CvT of its authors and of Hugging Face.

Names: `lib/models/cls_cvt.py` of microsoft/CvT, and `modeling_cvt.py` of transformers.
"""

from vidformers.pretrained.layouts.registry import register
from vidformers.pretrained.layouts.structure import HUGGING_FACE_MLP, IMAGENET, TIMM_MLP, CvtWeights, published_heads


def read(arrays) -> CvtWeights:
    """Converts the arrays of its authors. Batch norm is folded into the scale and bias of the convolution before it."""
    depths = arrays.stage_depths("stage", r"\.blocks\.")
    embeddings = [
        {
            "convolution": arrays.convolution(f"stage{i}.patch_embed.proj"),
            "norm": arrays.norm(f"stage{i}.patch_embed.norm"),
        }
        for i in range(len(depths))
    ]
    return CvtWeights(
        layout="CvT of its authors",
        embeddings=embeddings,
        stages=[[_block(arrays, f"stage{i}.blocks.{j}") for j in range(depth)] for i, depth in enumerate(depths)],
        class_token=arrays[f"stage{len(depths) - 1}.cls_token"][0, 0],
        norm=arrays.norm("norm"),
        heads=published_heads(len(embeddings[0]["norm"]["bias"])),
        head=arrays.head("head"),
        normalisation=IMAGENET,
    )


def _block(arrays, block):
    attention = f"{block}.attn"
    return {
        "attention": {
            "norm": arrays.norm(f"{block}.norm1"),
            "near": {
                i: arrays.normalised_convolution(f"{attention}.conv_proj_{x}.conv", f"{attention}.conv_proj_{x}.bn")
                for i, x in enumerate("qkv")
            },
            "qkv": {i: arrays.linear(f"{attention}.proj_{x}") for i, x in enumerate("qkv")},
            "out": arrays.linear(f"{attention}.proj"),
        },
        "mlp": arrays.mlp(block, TIMM_MLP),
    }


def read_hugging_face(arrays) -> CvtWeights:
    """Converts the arrays of Hugging Face, as `read`."""
    depths = arrays.stage_depths(r"encoder\.stages\.", r"\.layers\.")
    stages = [f"encoder.stages.{i}" for i in range(len(depths))]
    embeddings = [
        {
            "convolution": arrays.convolution(f"{stage}.embedding.convolution_embeddings.projection"),
            "norm": arrays.norm(f"{stage}.embedding.convolution_embeddings.normalization"),
        }
        for stage in stages
    ]
    without_prefix = arrays.with_prefix("")
    return CvtWeights(
        layout="CvT of Hugging Face",
        embeddings=embeddings,
        stages=[
            [_block_of_hugging_face(arrays, f"{stage}.layers.{j}") for j in range(depth)]
            for stage, depth in zip(stages, depths, strict=True)
        ],
        class_token=arrays[f"{stages[-1]}.cls_token"][0, 0],
        norm=without_prefix.norm("layernorm"),
        heads=arrays.number("num_heads", first=True) or published_heads(len(embeddings[0]["norm"]["bias"])),
        head=without_prefix.head("classifier"),
        normalisation=IMAGENET,
    )


def _block_of_hugging_face(arrays, block):
    attention, names = f"{block}.attention.attention", ("query", "key", "value")

    def near(name):
        projection = f"{attention}.convolution_projection_{name}.convolution_projection"
        return arrays.normalised_convolution(f"{projection}.convolution", f"{projection}.normalization")

    return {
        "attention": {
            "norm": arrays.norm(f"{block}.layernorm_before"),
            "near": {i: near(name) for i, name in enumerate(names)},
            "qkv": {i: arrays.linear(f"{attention}.projection_{name}") for i, name in enumerate(names)},
            "out": arrays.linear(f"{block}.attention.output.dense"),
        },
        "mlp": arrays.mlp(block, HUGGING_FACE_MLP),
    }


register("CvT of its authors", read, "stage0.blocks.0.attn.conv_proj_q.conv.weight", "stage0.patch_embed.proj.weight")
register(
    "CvT of Hugging Face",
    read_hugging_face,
    "encoder.stages.0.layers.0.attention.attention.convolution_projection_query.convolution_projection.convolution.weight",
)
