"""The ablations of VTN (Neimark et al., 2021), and overrides of the configs that train their rows.

The document from which this library is written tells the findings in words and has no table, so that no row has a
reported figure.
"""

from benchmarks.tables.rows import Row, Table

_CONFIG = "vtn_vit_b16"


def _row(label: str, *overrides: str, config: str = _CONFIG) -> Row:
    return Row(label=label, config=config, overrides=overrides)


TABLES = (
    Table(
        name="vtn/backbone",
        title="better backbones give better accuracy",
        data="Kinetics-400",
        views="1x1",
        rows=(
            _row("ResNet-50", "model.backbone=resnet", config="vtn_resnet50"),
            _row("ViT-B/16", "model.backbone=vit"),
        ),
    ),
    Table(
        name="vtn/frozen",
        title="a fine-tuned backbone is better than a frozen one",
        data="Kinetics-400",
        views="1x1",
        rows=(_row("fine-tuned", "optim.frozen=()"), _row("frozen", "optim.frozen=('encoder',)")),
        guess="Both start from ImageNet weights: give --config.init.weights=FILE.",
    ),
    Table(
        name="vtn/depth",
        title="a deeper temporal encoder is not always better",
        data="Kinetics-400",
        views="1x1",
        rows=tuple(_row(f"{depth} layers", f"model.temporal_depth={depth}") for depth in (1, 3, 6)),
        guess="The depths.",
    ),
    Table(
        name="vtn/frames",
        title="the number of frames and their rate do not change accuracy",
        data="Kinetics-400",
        views="1x1",
        rows=tuple(
            _row(f"{frames} frames, every {stride}th at 25 fps", f"data.frames={frames}", f"data.stride={stride}")
            for frames, stride in ((8, 16), (16, 8), (16, 16), (32, 4), (32, 8))
        ),
        guess="The numbers and strides.",
    ),
    Table(
        name="vtn/window",
        title="windows that grow with depth (Longformer) beside equal ones",
        data="Kinetics-400",
        views="1x1",
        rows=(_row("18 in every layer", "model.window=(18,)"), _row("10, 18, 26", "model.window=(10, 18, 26)")),
        guess="The windows that grow.",
    ),
)
