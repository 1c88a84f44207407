"""The tables of STAT (Li et al., AAAI 2022), and overrides of `configs/stat_t16.py` and kin that train their rows."""

from benchmarks.tables.peers import TIMESFORMER_L, VIVIT_L, VIVIT_SSV2, peer
from benchmarks.tables.rows import Row, Small, Table, others

_MVIT = "MViT is not in this library"
_LAYOUT = "The layout of the stages and the recipe, which are in an appendix that was not published."
_WINDOW = (
    "The text says a window of 7 for 64 frames; the printed cost, 241.3 G for each view, is that of a window of 5 "
    "(`model.window=5`)."
)


def _modules(label: str, window: int, long_key: str, cost: str, top1: str, top5: str) -> Row:
    overrides = (f"model.window={window}", f"model.long_key={long_key}")
    return Row(label=label, config="stat_t16", overrides=overrides, cost=cost, top1=top1, top5=top5)


def _window(window: int, cost: str, top1: str, top5: str) -> Row:
    overrides = (f"model.window={window}",)
    return Row(label=f"SA_{window}", config="stat_t32", overrides=overrides, cost=cost, top1=top1, top5=top5)


def _layers(count: int, top1: str, top5: str) -> Row:
    field = f"model.aggregation_layers={count}"
    return Row(
        label=f"l_ta = {count}", config="stat_t16", overrides=(field,), top1=top1, top5=top5, small=(field,)
    )  # fmt: skip


def _stem(label: str, convolutions: int, patch_size: int, depths: tuple[int, ...], top1: str, guess: str = "") -> Row:
    overrides = (
        f"model.stem_convs={convolutions}",
        "model.stem_strides=same_grid",
        f"model.patch_size={patch_size}",
        f"model.depths={depths}",
        f"model.depth={sum(depths)}",
    )
    return Row(label=label, config="stat_t16", overrides=overrides, top1=top1, guess=guess)


def _ours(frames: int, window: int, views: str, cost: str, top1: str, top5: str, ssv2: bool = False) -> Row:
    config = f"stat_t{frames}"
    return Row(
        label=f"STAT, {frames} frames",
        config=f"ssv2:{config}" if ssv2 else config,
        overrides=(f"data.frames={frames}", f"model.window={window}"),
        views=views,
        cost=cost,
        top1=top1,
        top5=top5,
        cost_is="views, norms",
        differs=_WINDOW if frames == 64 else "",
        cost_with=("model.window=5",) if frames == 64 else (),
    )


TABLES = (
    Table(
        name="stat/1",
        title="attention components (CA: current, SA: short-term, LA: long-term), 16 frames",
        data="Kinetics-400",
        views="5x1",
        cost_unit="G",
        cost_is="view, norms",
        rows=(
            _modules("CA", 1, "none", "58.2", "77.3", "92.9"),
            _modules("CA + SA", 3, "none", "59.0", "77.8", "93.3"),
            _modules("CA + LA", 1, "class", "58.4", "78.3", "93.5"),
            _modules("CA + SA + LA", 3, "class", "59.1", "78.6", "93.8"),
        ),
        guess=_LAYOUT,
    ),
    Table(
        name="stat/2",
        title="window t_o of short-term attention, 32 frames",
        data="Kinetics-400",
        views="5x1",
        cost_unit="G",
        cost_is="view, norms",
        rows=(
            _window(3, "118.6", "79.9", "94.3"),
            _window(5, "120.1", "80.4", "94.6"),
            _window(7, "121.5", "80.4", "94.4"),
            _window(9, "123.0", "80.2", "94.4"),
        ),
        guess=_LAYOUT,
    ),
    Table(
        name="stat/3",
        title="global spatial embedding",
        data="Kinetics-400",
        views="5x1",
        rows=(
            Row(
                label="spatial avg-pooling",
                config="stat_t16",
                overrides=("model.long_key=mean",),
                top1="77.4",
                top5="93.2",
                guess="Whether frames keep a class token: they do, and the temporal aggregation reads it. With "
                "`model.frame_token=mean` they do not.",
            ),
            Row(
                label="spatial class token",
                config="stat_t16",
                overrides=("model.long_key=class",),
                top1="78.6",
                top5="93.8",
            ),
        ),
        guess=_LAYOUT,
    ),
    Table(
        name="stat/4",
        title="layers l_ta of temporal aggregation",
        data="Kinetics-400",
        views="5x1",
        rows=(
            _layers(0, "75.7", "92.2"),
            _layers(1, "78.6", "93.8"),
            _layers(2, "78.6", "93.9"),
            _layers(4, "78.5", "93.8"),
        ),
        guess=_LAYOUT,
        small=Small(
            overrides=("model.window=3", "model.long_key=class"),
            mapping="Two stages of two blocks, 32 channels and 2 heads, as in the demo; l_ta is the paper's.",
            tells="These clips can tell whether STAT learns the order of frames; they cannot tell the values of l_ta "
            "apart, since all rows reach 100%: its windows span frames, and a mean over frames suffices after them.",
        ),
    ),
    Table(
        name="stat/5",
        title="convolutional layers of the token embedding",
        data="Kinetics-400",
        views="5x1",
        rows=(
            _stem(
                "1: (3,7,7) / (2,4,4)",
                1,
                4,
                (2, 11, 2),
                "78.2",
                "The blocks that replace convolutions: the first stage of MViT, one block of 96 channels.",
            ),
            _stem("3: (3,3,3) / (2,2,2) (1,2,2) (1,2,2)", 3, 8, (2, 11, 2), "78.6"),
            _stem(
                "5: (3,3,3) / (2,2,2) (1,2,2) (1,2,2) (2,2,2) (1,2,2)",
                5,
                8,
                (2, 6, 3),
                "78.3",
                "The blocks and strides: the printed strides leave 7 x 7 patches and a quarter of the frames. Here the "
                "last two convolutions keep the grid, and (2, 6, 3) blocks keep parameters and cost: 44.24 M, 59.8 G.",
            ),
        ),
        guess=_LAYOUT,
    ),
    Table(
        name="stat/6",
        title="comparison on Kinetics-400",
        data="Kinetics-400",
        views="5x1",
        cost_unit="G",
        rows=(
            *others(
                """
                SlowFast R50, 8+32 frames | 77.0 | 92.6 | 10x3 | 1971
                SlowFast R101, 16+64 frames | 78.9 | 93.5 | 10x3 | 6390
                X3D R50 | 79.1 | 93.9 | 10x3 | 1452
                X3D R101 | 80.4 | 94.6 | 10x3 | 5823
                ip-CSN, 32 frames | 79.2 | 93.8 | 10x3 | 3264
                I3D_NL R50, 128 frames | 76.5 | 92.6 | 10x3 | 8460
                I3D_NL R101, 128 frames | 77.7 | 93.3 | 10x3 | 10800
                TSM R50, 16 frames | 74.7 | | 10x3 | 650
                MSNet R50, 16 frames | 76.4 | | 10x1 | 670
                bLVNet, 24 frames | 73.5 | 91.2 | 3x3 | 840
                TEA R50, 8 frames | 75.0 | 91.8 | 10x3 | 1050
                TEA R50, 16 frames | 76.1 | 92.5 | 10x3 | 2100
                TDN R101, 8 frames | 77.5 | 93.6 | 10x3 | 1980
                TDN R101, 16 frames | 78.5 | 93.9 | 10x3 | 3960
                STM R50, 16 frames | 73.7 | 91.6 | 10x3 | 2010
                """
            ),
            *others(
                """
                MViT, 16 frames | 78.4 | 93.5 | 5x1 | 353
                MViT, 32 frames | 80.2 | 94.4 | 5x1 | 850
                MViT, 64 frames | 81.2 | 95.1 | 3x3 | 4095
                """,
                _MVIT,
            ),
            *others(
                "VidTr, 16 frames | 78.6 | 93.5 | 10x3 | 5370\nVidTr, 32 frames | 79.1 | 93.9 | 10x3 | 10530",
                "VidTr is not in this library",
            ),
            peer(TIMESFORMER_L, label="TimeSformer, 96 frames", top1="80.7", top5="94.7", views="1x3", cost="7140"),
            peer(VIVIT_L, label="ViViT, 16 frames", top1="80.6", top5="94.7", views="4x3", cost="17352"),
            _ours(16, 3, "5x1", "296", "78.6", "93.8"),
            _ours(32, 5, "5x1", "601", "80.4", "94.6"),
            _ours(64, 7, "3x3", "2172", "81.3", "95.1"),
        ),
        guess=_LAYOUT,
    ),
    Table(
        name="stat/7",
        title="comparison on Something-Something v2",
        data="Something-Something v2",
        views="1x3",
        cost_unit="G",
        rows=(
            *others(
                """
                bLVNet R101, 8 frames | 60.2 | 87.1 | 1x1 | 32
                TSM R50, 16 frames | 63.4 | 88.5 | 2x3 | 390
                SmallBigNet R50, 16 frames | 63.8 | 88.9 | 2x3
                MSNet R50, 16+8 frames | 67.1 | 91.0 | 10x1 | 1010
                STM R50, 16 frames | 64.2 | 89.8 | 10x3 | 2010
                """
            ),
            *others(
                """
                MViT, 16 frames | 64.7 | 89.2 | 1x3 | 212
                MViT, 32 frames | 67.1 | 90.8 | 1x3 | 510
                MViT, 64 frames | 67.7 | 90.9 | 1x3 | 1365
                """,
                _MVIT,
            ),
            peer(
                TIMESFORMER_L,
                label="TimeSformer, 96 frames",
                config="ssv2:timesformer_b16",
                top1="62.4",
                views="1x3",
                cost="7140",
                guess="Its authors' TimeSformer_divST_64_224.yaml has 64 frames on this data set.",
            ),
            peer(VIVIT_SSV2, label="ViViT, 16 frames", top1="65.4", top5="89.8", views="4x3", cost="11892"),
            _ours(16, 3, "1x3", "178", "65.1", "89.4", ssv2=True),
            _ours(32, 5, "1x3", "361", "67.3", "90.8", ssv2=True),
            _ours(64, 7, "1x3", "724", "67.6", "90.9", ssv2=True),
        ),
        guess=f"{_LAYOUT} These rows start from the weights of Table 6: give --config.init.weights=DIR.",
    ),
)
