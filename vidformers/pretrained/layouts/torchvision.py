"""Video Swin of torchvision."""

from vidformers.pretrained.layouts.structure import IMAGENET, Windows, has

recognised = has("features.0.0.attn.relative_position_bias_table", "patch_embed.proj.weight")


def read(names) -> Windows:
    """Stages and what merges patches between them take turns in one list."""

    def block(at):
        if f"{at}.attn.relative_position_index" in names:
            rows.append(names(f"{at}.attn.relative_position_index"))
        return {
            "attention": {
                "norm": names.norm(f"{at}.norm1"),
                "qkv": names.linear(f"{at}.attn.qkv"),
                "out": names.linear(f"{at}.attn.proj"),
                "table": names(f"{at}.attn.relative_position_bias_table"),
            },
            "mlp": {
                "norm": names.norm(f"{at}.norm2"),
                "wide": names.linear(f"{at}.mlp.0"),
                "out": names.linear(f"{at}.mlp.3"),
            },
        }

    rows, places = [], range(names.count(r"features\.(\d+)\."))
    stages = [[block(f"features.{i}.{j}") for j in range(names.count(rf"features\.{i}\.(\d+)\."))] for i in places[::2]]
    merges = [
        {"norm": names.norm(f"features.{i}.norm"), "out": {"kernel": names(f"features.{i}.reduction.weight").T}}
        for i in places[1::2]
    ]
    return Windows(
        layout="Video Swin of torchvision",
        patch=names.convolution("patch_embed.proj"),
        embeddings=[{"norm": names.norm("patch_embed.norm")}, *merges],
        stages=stages,
        norm=names.norm("norm"),
        rows=rows[0] if rows else None,
        head=names.head("head"),
        normalisation=IMAGENET,
    )
