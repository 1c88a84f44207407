"""The tables of MSCA (Hashiguchi and Tamaki, 2022), and overrides of the configs that train their rows."""

from benchmarks.tables.rows import Row, Small, Table

_VIT = dict(label="ViT", config="vit_b16", top1="75.65", top5="92.19", small=())
_TOKENSHIFT = dict(label="TokenShift", config="tokenshift_b16:msca", top1="76.37", top5="92.82", small=())
_SMALL = ("model.width=96", "model.heads=12", "model.depth=6")
_TWELVE = "Twelve heads, of width 8 instead of 64. Six blocks instead of twelve"
_ORDER = (
    "These clips can tell a model that sees the order of frames from one that does not, ViT, which stays below 52 %; "
    "they cannot tell variants apart that differ by half a point on Kinetics-400."
)


def _msca(label: str, top1: str, top5: str, *, direction: str, moved: str, count: int, blocks: int = 12, **fields):
    """Returns the row that moves `count` heads or patches from each side, in the last `blocks` blocks."""
    overrides = (
        f"model.direction={direction}",
        f"model.moved={moved}",
        f"model.before={count}",
        f"model.after={count}",
        f"model.shifted_blocks={blocks}",
    )
    return Row(label=label, config="msca_b16", overrides=overrides, top1=top1, top5=top5, **fields)


def _heads(total: int, percent: str, top1: str, top5: str) -> Row:
    count = total // 2
    label = f"MSCA-KV, {total} heads (h_b = h_f = {count}), shift {percent} %"
    small = ("model.moved=KV", f"model.before={count}", f"model.after={count}", "model.shifted_blocks=6")
    return _msca(label, top1, top5, direction="heads", moved="KV", count=count, small=small)


def _variant(moved: str, top1: str, top5: str) -> Row:
    small = (f"model.moved={moved}", "model.before=1", "model.after=1", "model.shifted_blocks=6")
    return _msca(f"MSCA-{moved}", top1, top5, direction="heads", moved=moved, count=1, small=small)


def _blocks(blocks: int, top1: str, top5: str) -> Row:
    small = ("model.moved=KV", "model.before=1", "model.after=1", f"model.shifted_blocks={blocks // 2}")
    return _msca(
        f"MSCA-KV, {blocks} MSCA and {12 - blocks} MSA blocks",
        top1,
        top5,
        direction="heads",
        moved="KV",
        count=1,
        blocks=blocks,
        small=small,
    )


def _patches(total: int, percent: str, top1: str, top5: str) -> Row:
    count = total // 2
    label = f"{total} patches (N_b = N_f = {count}), shift {percent} %"
    return _msca(label, top1, top5, direction="patches", moved="KV", count=count)


def _patch_variant(moved: str, top1: str, top5: str) -> Row:
    return _msca(f"MSCA-p{moved}", top1, top5, direction="patches", moved=moved, count=8)


def _without_small(fields: dict) -> Row:
    return Row(**{**fields, "small": None})


TABLES = (
    Table(
        name="msca/1",
        title="number of shifted heads of MSCA-KV",
        data="Kinetics-400",
        views="10x3",
        rows=(
            Row(**{**_VIT, "label": "ViT, 0 heads"}),
            _heads(2, "16.7", "76.47", "92.88"),
            _heads(4, "33.3", "76.07", "92.61"),
            _heads(6, "50.0", "75.66", "92.30"),
            _heads(8, "66.7", "74.72", "91.91"),
        ),
        small=Small(overrides=_SMALL, mapping=f"{_TWELVE}. The numbers of heads are the paper's.", tells=_ORDER),
    ),
    Table(
        name="msca/2",
        title="which of queries, keys and values are shifted, by heads",
        data="Kinetics-400",
        views="10x3",
        rows=(
            Row(**_TOKENSHIFT),
            Row(**_VIT),
            _variant("Q", "75.84", "92.57"),
            _variant("K", "75.76", "92.13"),
            _variant("V", "75.58", "92.39"),
            _variant("QK", "75.47", "92.32"),
            _variant("KV", "76.47", "92.88"),
            _variant("QV", "75.57", "92.43"),
            _variant("QKV", "75.78", "92.37"),
        ),
        small=Small(overrides=_SMALL, mapping=f"{_TWELVE}. Two heads are shifted, as in the paper.", tells=_ORDER),
    ),
    Table(
        name="msca/3",
        title="number of blocks with MSCA, at the end of the network",
        data="Kinetics-400",
        views="10x3",
        rows=(
            Row(**{**_VIT, "label": "ViT, 0 MSCA and 12 MSA blocks"}),
            _blocks(4, "75.67", "92.19"),
            _blocks(8, "76.40", "92.77"),
            _blocks(12, "76.47", "92.88"),
        ),
        small=Small(
            overrides=_SMALL,
            mapping=f"{_TWELVE}, and half of each number of MSCA blocks.",
            tells="These clips can tell that blocks with MSCA are needed, and whether more of them learn faster; they "
            "cannot tell 8 from 12 blocks by a tenth of a point.",
        ),
    ),
    Table(
        name="msca/4",
        title="number of shifted patches of MSCA-pKV",
        data="Kinetics-400",
        views="10x3",
        rows=(
            _without_small({**_VIT, "label": "0 patches (ViT)"}),
            _patches(8, "4.1", "76.28", "92.49"),
            _patches(16, "8.1", "76.35", "92.91"),
            _patches(32, "16.2", "76.07", "92.77"),
            _patches(48, "24.4", "75.84", "92.49"),
            _patches(64, "32.5", "75.29", "92.04"),
        ),
    ),
    Table(
        name="msca/5",
        title="which of queries, keys and values are shifted, by patches",
        data="Kinetics-400",
        views="10x3",
        rows=(
            _without_small(_TOKENSHIFT),
            _without_small(_VIT),
            _patch_variant("Q", "75.75", "92.10"),
            _patch_variant("K", "75.69", "92.24"),
            _patch_variant("V", "75.84", "92.43"),
            _patch_variant("QK", "75.50", "91.99"),
            _patch_variant("KV", "76.35", "92.91"),
            _patch_variant("QV", "75.83", "92.35"),
            _patch_variant("QKV", "75.73", "92.21"),
        ),
    ),
)
