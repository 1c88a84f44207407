r"""VTN with a ViT-B/16 for each frame and three Longformer layers over the frames.

Paper: Neimark et al., "Video Transformer Network", 2021. The model behaves as its authors' code. From ImageNet weights.
Cost: 113,502,352 parameters.
As in the paper: python main.py --config=configs/vtn_vit_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('normalisation', 'pre_logits')"
From scratch: python main.py --config=configs/vtn_vit_b16.py --config.data.root=DIR --config.data.num_classes=N
ViT-B_16.npz is Google's ViT of ImageNet-21k, whose pixels were normalised with 0.5 and 0.5. The authors' code
normalises with 0.45 and 0.225 all the same, and takes timm's copy of a ViT-B/16 of Google (configs/Kinetics/
VIT_B_VTN.yaml, VTN.PRETRAINED).

Evaluation uses one view with the first 250 frames of the video at 25 frames per second, or all frames of a shorter
video. The backbone processes 16 of these frames at once.
The paper's ablations: python -m benchmarks.tables vtn/depth --config.data.root=DIR (docs/papers/vtn.md)
"""

from configs.base import base
from configs.sources import cite

CODE = "bomri/SlowFast, merged into facebookresearch/SlowFast"
FILE = f"{CODE}, configs/Kinetics/VIT_B_VTN.yaml"


def get_config():
    config = recipe("vit")
    cite(config, f"{CODE}, slowfast/models/video_model_builder.py: vit_base_patch16_224", model=dict(patch_size=16))
    return config


def recipe(backbone: str):
    """Returns the config of a VTN with the backbone 'vit' or 'resnet'."""
    config = base("vtn")
    cite(
        config,
        f"{FILE}: VTN",
        model=dict(
            backbone=backbone,
            size="B",
            temporal_depth=3,
            window=(18,),
            temporal_dropout=0.1,
            dropout=0.0,
            drop_path=0.0,
        ),
    )
    cite(
        config,
        f"{FILE}: MODEL.DROPOUT_RATE, MODEL.LOSS_FUNC",
        model=dict(head_dropout=0.5),
        train=dict(label_smoothing=0.0),
    )
    _clips_and_views(config)
    cite(
        config,
        f"{CODE}, slowfast/datasets/transform.py: random_short_side_scale_jitter, random_crop",
        data=dict(crop="jitter", resize="bilinear"),
    )
    cite(
        config,
        f"{CODE}, slowfast/config/defaults.py: DATA.MEAN, DATA.STD, DATA.RANDOM_FLIP",
        model=dict(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
        data=dict(flip=0.5),
    )
    cite(
        config,
        f"{FILE}: TRAIN.BATCH_SIZE, SOLVER",
        train=dict(batch_size=16, total_epochs=25.0),
        optim=dict(name="sgd", lr=1e-3, momentum=0.9, schedule="step", drop_epochs=(13.0, 24.0), drop_factor=0.1),
    )
    cite(
        config,
        f"{CODE}, slowfast/config/defaults.py: SOLVER.NESTEROV, SOLVER.WEIGHT_DECAY, SOLVER.WARMUP_EPOCHS; no clipping",
        optim=dict(nesterov=True, weight_decay=1e-4, warmup_epochs=None, clip_norm=None),
    )
    cite(
        config,
        f"{CODE}, slowfast/models/optimizer.py, and slowfast/config/defaults.py: BN.WEIGHT_DECAY",
        optim=dict(decay="all_but_batch_norm"),
    )
    config.model.frames_at_once = 16
    config.train.eval_every_epochs = 1.0
    return config


def _clips_and_views(config) -> None:
    cite(
        config,
        f"{FILE}: DATA",
        data=dict(frames=16, stride=8, fps=25.0, size=224, short_side=(256, 320)),
    )
    cite(
        config,
        f"{CODE}, slowfast/datasets/decoder.py: get_start_end_idx, temporal_sampling",
        data=dict(sampling="slowfast", test_starts="from_first"),
    )
    cite(
        config,
        f"{CODE}, slowfast/datasets/kinetics.py: TRAIN_JITTER_SCALES[0] with one crop",
        data=dict(test_short_side=256),
    )
    cite(
        config,
        f"{FILE}: TRAIN.EVAL_NUM_FRAMES, TEST.NUM_ENSEMBLE_VIEWS, TEST.NUM_SPATIAL_CROPS",
        eval=dict(clips=1, crops=1, frames=250),
    )
