"""Rows of models of other papers that this library has too: Video Swin, TimeSformer and ViViT.

The configs hold the recipes of this library's sheets for these models.
"""

from dataclasses import replace

from benchmarks.tables.rows import Row

TIMESFORMER_L = Row(
    label="TimeSformer-L",
    config="timesformer_b16",
    # facebookresearch/TimeSformer, configs/Kinetics/TimeSformer_divST_96x4_224.yaml
    overrides=("data.frames=96", "data.stride=4", "data.size=224"),
    guess="TimeSformer-L is TimeSformer-B on 96 frames (its authors' TimeSformer_divST_96x4_224.yaml).",
)
TIMESFORMER_HR = Row(
    label="TimeSformer",
    config="kinetics600:timesformer_b16",
    # facebookresearch/TimeSformer, configs/Kinetics/TimeSformer_divST_16x16_448.yaml
    overrides=("data.frames=16", "data.stride=16", "data.size=448", "data.short_side=(448, 512)"),
    guess="The cost printed in HaViT's Table 3 is that of TimeSformer-HR, 16 frames of 448 pixels.",
)
VIVIT_L = Row(
    label="ViViT-L/16x2",
    config="vivit_b16",
    overrides=("model.size=L", "data.frames=32", "model.patch_frames=2"),
    guess="The cost is that of ViViT's model 1, joint attention of size L.",
    differs="The printed cost is 0.7 % above all products of the model.",
)
VIVIT_SSV2 = Row(
    label="ViViT-L/16x2",
    unreachable="ViViT's factorised encoder, which its authors use for Something-Something v2 "
    "(scenic/projects/vivit/configs/something_something_v2), is not in this library",
)
SWIN_B = Row(
    label="Swin-B",
    config="swin_t",
    overrides=(
        "model.dictionary=0",
        "model.width=128",
        "model.heads=4",
        "model.depth=24",
        "model.depths=(2, 2, 18, 2)",
        "data.frames=32",
        "data.sampling=mmaction2_0",
        "data.stride=2",
    ),
    guess="The recipe is that of `configs/swin_t.py`, not that of Swin's authors.",
)


def peer(row: Row, **fields) -> Row:
    """Returns one of these rows with the figures that a paper prints for it."""
    return replace(row, **fields)
