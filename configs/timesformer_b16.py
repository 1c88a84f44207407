r"""TimeSformer-B/16 x 8 frames, divided space-time attention.

Paper: Bertasius, Wang and Torresani, 2021. Its authors report top-1 77.9 %, top-5 93.2 % on Kinetics-400, one clip x
three crops, from ImageNet-21k weights.
Cost: 121,566,352 parameters, 195.8 G multiply-adds per view.
As in the paper: python main.py --config=configs/timesformer_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('normalisation', 'pre_logits')"
From scratch: python main.py --config=configs/timesformer_b16.py --config.data.root=DIR --config.data.num_classes=N
ViT-B_16.npz is Google's ViT of ImageNet-21k, whose pixels were normalised with 0.5 and 0.5. The authors' code
normalises with 0.45 and 0.225 all the same (DATA.MEAN, DATA.STD in timesformer/config/defaults.py).
"""

from configs.base import base
from configs.sources import cite

CODE = "facebookresearch/TimeSformer"
FILE = f"{CODE}, configs/Kinetics/TimeSformer_divST_8x32_224.yaml"


def get_config():
    config = base("timesformer")
    return recipe(config, FILE)


def recipe(config, file: str):
    """Sets the fields of the recipe in `file`, a config file of TimeSformer's authors, and in their code."""
    _clips(config, file)
    cite(
        config,
        f"{CODE}, timesformer/models/vit.py",
        model=dict(size="B", patch_size=16, dropout=0.0, drop_path=0.1),
    )
    cite(
        config,
        f"{file}: SOLVER",
        train=dict(total_epochs=15.0),
        optim=dict(
            name="sgd",
            lr=5e-3,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            drop_epochs=(11.0, 14.0),
            drop_factor=0.1,
        ),
    )
    cite(
        config,
        f"{CODE}, timesformer/config/defaults.py: SOLVER.NESTEROV, WARMUP_EPOCHS, GLOBAL_BATCH_SIZE; no clipping",
        train=dict(batch_size=64),
        optim=dict(nesterov=True, warmup_epochs=None, clip_norm=None),
    )
    cite(
        config,
        f"{CODE}, timesformer/models/optimizer.py: all parameters, since the model has no batch norm",
        optim=dict(decay="all"),
    )
    cite(config, f"{file}: MODEL.LOSS_FUNC", train=dict(label_smoothing=0.0))
    cite(config, f"{file}: TEST.NUM_ENSEMBLE_VIEWS, TEST.NUM_SPATIAL_CROPS", eval=dict(clips=1, crops=3))
    cite(config, f"{file}: DATA.TEST_CROP_SIZE", data=dict(test_short_side=None))  # the size of the crop
    cite(
        config,
        f"{CODE}, tools/test_net.py and timesformer/utils/meters.py: adds up the outputs of the head",
        eval=dict(average="logits"),
    )
    config.train.eval_every_epochs = 1.0
    return config


def _clips(config, file: str) -> None:
    cite(
        config,
        f"{file}: DATA",
        data=dict(frames=8, stride=32, size=224, short_side=(256, 320)),
    )
    cite(
        config,
        f"{CODE}, timesformer/datasets/decoder.py: get_start_end_idx, temporal_sampling",
        data=dict(sampling="slowfast", test_starts="from_first"),
    )
    cite(config, f"{CODE}, timesformer/config/defaults.py: DATA.TARGET_FPS", data=dict(fps=30.0))
    cite(
        config,
        f"{CODE}, timesformer/datasets/transform.py: random_short_side_scale_jitter, random_crop",
        data=dict(crop="jitter", resize="bilinear"),
    )
    cite(
        config,
        f"{CODE}, timesformer/config/defaults.py: DATA.MEAN, DATA.STD, DATA.RANDOM_FLIP",
        model=dict(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
        data=dict(flip=0.5),
    )
