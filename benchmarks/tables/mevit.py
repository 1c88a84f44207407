"""The tables of MEViT (Li and Zhuang, MMM 2022), and overrides of `configs/mevit_b16.py` that train their rows."""

from benchmarks.tables.peers import TIMESFORMER_HR, TIMESFORMER_L, VIVIT_L, VIVIT_SSV2, peer
from benchmarks.tables.rows import Row, Small, Table, others

BASELINE = ("model.depth=12", "model.class_blocks=0")
_FINAL = ("model.depth=11", "model.motion_blocks=7", "model.class_blocks=1", "model.block_size=2")


def _block_size(size: int, top1: str, top5: str, small: int) -> Row:
    return Row(
        label=f"M = {size}",
        config="mevit_b16",
        overrides=(*BASELINE, "model.motion_blocks=12", f"model.block_size={size}"),
        top1=top1,
        top5=top5,
        small=(f"model.block_size={small}",),
    )


def _classes(blocks: int, class_blocks: int, top1: str) -> Row:
    return Row(
        label=f"{blocks}+{class_blocks}, class token inserted at layer {blocks}",
        config="mevit_b16",
        overrides=(
            f"model.depth={blocks}",
            f"model.motion_blocks={blocks}",
            f"model.class_blocks={class_blocks}",
            "model.block_size=2",
        ),
        top1=top1,
    )


def _motion_blocks(count: int, top1: str) -> Row:
    return Row(
        label=f"L_t = {count}",
        config="mevit_b16",
        overrides=(*BASELINE, f"model.motion_blocks={count}", "model.block_size=2"),
        top1=top1,
        small=(f"model.motion_blocks={count // 2}",),
    )


def _final(label: str, config: str, frames: int, top1: str, top5: str, views: str = "") -> Row:
    overrides = (*_FINAL, f"data.frames={frames}")
    return Row(label=label, config=config, overrides=overrides, top1=top1, top5=top5, views=views)


TABLES = (
    Table(
        name="mevit/1",
        title="block size of motion self-attention",
        data="Kinetics-400",
        views="1x3",
        rows=(
            _block_size(1, "78.6", "93.0", 1),
            _block_size(2, "80.2", "93.6", 2),
            _block_size(3, "80.0", "93.2", 3),
            _block_size(7, "77.6", "92.8", 4),
            _block_size(14, "77.9", "92.8", 8),
        ),
        guess="The number of layers: 12 self-attention blocks with the class token from the input on, the row "
        "L_t = 12 of Table 3, whose top-1 is that of M = 2.",
        small=Small(
            overrides=("model.class_blocks=0", "model.depth=3", "model.motion_blocks=3", "model.patch_size=4"),
            mapping="Frames of 8 x 8 patches instead of 14 x 14; M = 7, half a side, becomes 4, and M = 14, the whole "
            "side, becomes 8. Three blocks instead of twelve.",
            tells="These clips are no evidence for or against Table 1: whole digits move, and time attention alone "
            "(M = 1) learns fastest, which contradicts the paper's order.",
        ),
    ),
    Table(
        name="mevit/2",
        title="self-attention and class-attention layers",
        data="Kinetics-400",
        views="1x3",
        rows=(
            _classes(9, 3, "79.4"),
            _classes(10, 2, "80.3"),
            _classes(11, 1, "80.5"),
            _classes(12, 1, "80.6"),
        ),
        guess="The number of blocks with motion attention: all self-attention blocks.",
    ),
    Table(
        name="mevit/3",
        title="number L_t of blocks with time attention",
        data="Kinetics-400",
        views="1x3",
        rows=(
            _motion_blocks(0, "75.6"),
            _motion_blocks(2, "77.5"),
            _motion_blocks(4, "77.9"),
            _motion_blocks(8, "80.3"),
            _motion_blocks(12, "80.2"),
        ),
        guess="The class token: one for the clip, from the input on.",
        small=Small(
            overrides=("model.class_blocks=0", "model.depth=6", "model.block_size=2"),
            mapping="Six blocks instead of twelve, and half of each L_t.",
            tells="These clips can tell how much time attention helps where classes differ only in the order of "
            "frames, although with L_t = 0 position embeddings in time still reach the class token; they cannot "
            "tell whether the first blocks of a large model do better without it.",
        ),
    ),
    Table(
        name="mevit/4",
        title="comparison on Kinetics-400",
        data="Kinetics-400",
        views="1x3",
        rows=(
            *others(
                """
                blVNet | 73.5 | 91.2 | 3x3
                TEA | 76.1 | 92.5 | 10x3
                TSM-R101 | 76.3 | | 10x3
                I3D NL | 77.7 | 93.3 | 10x3
                CorrNet-101 | 79.2 | | 10x3
                LGD-R101 | 79.4 | 94.4
                SlowFast | 79.8 | 93.9 | 10x3
                X3D-XXL | 80.4 | 94.6 | 10x3
                """
            ),
            peer(
                TIMESFORMER_L,
                top1="80.7",
                top5="94.7",
                views="10x3",
                guess=f"{TIMESFORMER_L.guess} HaViT and STAT print 1x3 views for the same figures.",
            ),
            peer(VIVIT_L, top1="80.6", top5="94.7", views="4x3", differs=""),
            _final("Our model", "mevit_b16", 8, "80.6", "94.7", "1x3"),
            _final("Our model (16x)", "mevit_b16", 16, "81.1", "94.9", "1x3"),
        ),
    ),
    Table(
        name="mevit/5",
        title="comparison on Kinetics-600",
        data="Kinetics-600",
        views="1x3",
        rows=(
            *others("AttentionNAS | 79.8 | 94.4", "a searched network that is not in this library"),
            *others("LGD-R101 | 81.5 | 91.6\nSlowFast | 81.8 | 92.5\nX3D-XL | 81.9"),
            peer(TIMESFORMER_HR, top1="82.4", top5="93.3"),
            peer(
                VIVIT_L,
                config="kinetics600:vivit_b16",
                top1="82.5",
                views="4x3",
                guess=f"{VIVIT_L.guess} The views are those of Table 4.",
                differs="",
            ),
            _final("Our model (16x)", "kinetics600:mevit_b16", 16, "85.6", "95.2"),
        ),
    ),
    Table(
        name="mevit/6",
        title="comparison on Something-Something v2",
        data="Something-Something v2",
        views="1x3",
        rows=(
            *others("TRN | 48.8 | 77.6\nSlowFast | 61.7"),
            peer(
                TIMESFORMER_L,
                label="TimeSformer",
                config="ssv2:timesformer_b16",
                top1="62.5",
                guess="HaViT prints this figure for TimeSformer-L, with the cost of 96 frames; its authors' "
                "TimeSformer_divST_64_224.yaml has 64 on this data set.",
            ),
            *others("TSM | 63.4 | 88.5\nTEA | 65.1\nblVNet | 65.2 | 90.3"),
            peer(VIVIT_SSV2, top1="65.4", top5="89.8"),
            _final("Our model (16x)", "ssv2:mevit_b16", 16, "65.7", "90.5"),
        ),
    ),
)
