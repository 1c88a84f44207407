"""ViViT-B/16x2 x 32 frames: joint attention over patches of two frames.

Paper: Arnab et al., "ViViT: A Video Vision Transformer", 2021, model 1: top-1 80.0 % on Kinetics-400, four clips x
three crops, from ImageNet-21k weights. This is the recipe of its authors' code, which trained the published weights
`google/vivit-b-16x2-kinetics400`.
Cost: 88,954,000 parameters, 451.5 G multiply-adds per view.
Command: python main.py --config=configs/vivit_b16.py --config.data.root=DIR --config.data.num_classes=N
"""

from configs.base import base


def get_config():
    config = base("joint")
    config.model.update(patch_frames=2, positions="joint", gelu="tanh")
    config.data.update(frames=32, sampling="dense", stride=2)
    config.data.update(short_side=(256, 256), stretch=(0.9, 1.33), colour_jitter=0.8, grey=0.1)
    config.train.update(batch_size=64, total_epochs=30.0, eval_every_epochs=1.0)
    config.optim.update(
        name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, schedule="cosine", warmup_epochs=2.5, clip_norm=1.0
    )
    config.eval.update(clips=4, crops=3, average="logits")
    return config
