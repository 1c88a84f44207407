r"""ViViT-B/16x2 x 32 frames: joint attention over patches of two frames.

Paper: Arnab et al., "ViViT: A Video Vision Transformer", 2021, model 1: top-1 80.0 % on Kinetics-400, four clips x
three crops, from ImageNet-21k weights. This is the recipe of its authors' code, which trained the published weights
`google/vivit-b-16x2-kinetics400`.
Cost: 88,954,000 parameters, 451.5 G multiply-adds per view.
As in the paper: python main.py --config=configs/vivit_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('pre_logits',)"
From scratch: python main.py --config=configs/vivit_b16.py --config.data.root=DIR --config.data.num_classes=N
ViT-B_16.npz is Google's ViT of ImageNet-21k (init_from in scenic/projects/vivit/configs/kinetics400/
vivit_base_k400.py of google-research/scenic).
"""

from configs.base import base
from configs.sources import cite

CODE = "google-research/scenic"
FILE = f"{CODE}, scenic/projects/vivit/configs/kinetics400/vivit_base_k400.py"


def get_config():
    config = base("joint")
    cite(
        config,
        f"{FILE}: model",
        model=dict(size="B", patch_size=16, patch_frames=2, dropout=0.0),
    )
    cite(
        config,
        f"{CODE}, scenic/projects/vivit/model.py: one table of positions, nn.gelu, no stochastic depth by default",
        model=dict(positions="joint", gelu="tanh", drop_path=0.0),
    )
    cite(
        config,
        f"{FILE}: num_frames, stride, min_resize, crop_size, zero_centering",
        data=dict(frames=32, stride=2, size=224, short_side=(256, 256), test_short_side=256),
        model=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    cite(
        config,
        f"{FILE}: augmentation_params",
        data=dict(stretch=(0.9, 1.33), colour_jitter=0.8, grey=0.1),
    )
    cite(
        config,
        "google-deepmind/dmvr, dmvr/processors.py: sample_sequence, sample_linspace_sequence",
        data=dict(sampling="dmvr", fps=None),
    )
    cite(
        config,
        "google-deepmind/dmvr, dmvr/modalities.py: add_image, and processors.py: crop_image, random_flip_left_right, "
        "resize_smallest",
        data=dict(crop="jitter", flip=0.5, resize="bilinear"),
    )
    cite(
        config,
        f"{FILE}: the fields under Training, and lr_configs",
        train=dict(batch_size=64, total_epochs=30.0, label_smoothing=0.0),
        optim=dict(name="sgd", lr=0.1, weight_decay=0.0, schedule="cosine", warmup_epochs=2.5, clip_norm=1.0),
    )
    cite(
        config,
        f"{CODE}, scenic/train_lib/optimizers.py: momentum",
        optim=dict(momentum=0.9, nesterov=False, decay="all"),
    )
    cite(config, f"{FILE}: num_test_clips, do_three_spatial_crops", eval=dict(clips=4, crops=3))
    cite(config, f"{CODE}, scenic/projects/vivit/train_utils.py", eval=dict(average="logits"))
    config.train.eval_every_epochs = 1.0
    return config
