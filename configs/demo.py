"""The demo: a small MEViT learns the direction of motion, in minutes on a CPU. Its videos are rendered on first use.

Expected: top-1 of at least 95 % on held-out digits. --config=configs/demo.py:vit, the same run with the frame-wise
model, reaches between 40 % and 52 %: the data contain every clip and its reversal, and a frame-wise model cannot tell
them apart.
From scratch: python main.py --config=configs/demo.py
"""

from configs.base import base

# Fields of single models, so that all models of the demo are small.
SMALL = {
    "timesformer": dict(starts_as_image=False),
    "mevit": dict(motion_blocks=3, class_blocks=1),
    "havit": dict(dictionary=16, class_blocks=1),
    "vtn": dict(depth=2, temporal_depth=2, window=(8,), temporal_dropout=0.0, head_dropout=0.0),
    "swin": dict(width=32, heads=2, depth=4, depths=(2, 2), patch_size=4, window=(4, 4, 4)),
    "cvt": dict(width=24, heads=1, depth=4, depths=(1, 1, 2), patch_size=4),
    "stat": dict(width=32, heads=2, depth=4, depths=(2, 2), drop_path=0.1),
}


def get_config(model: str = "mevit"):
    config = base(model)
    config.data.update(
        source="motion_clips",
        root="data/motion_clips",
        classes="classes.txt",
        num_classes=10,
        frames=8,
        size=32,
        short_side=(34, 40),
        test_short_side=36,
        flip=0.5,
        workers=2,
        flip_swaps=(("slide left", "slide right"), ("turn clockwise", "turn anticlockwise")),
    )
    config.model.update(width=64, heads=4, depth=3, patch_size=8, unroll="3", dtype="float32")
    config.model.update(SMALL.get(model, {}))
    config.train.update(total_steps=1400, batch_size=16, log_every_steps=50, eval_every_steps=350)
    config.optim.update(lr=1e-3, warmup_steps=100, weight_decay=0.05, clip_norm=1.0)
    config.eval.update(clips=4, crops=1, batch_size=32, views_at_once=4)
    config.checkpoint.update(every_steps=350)
    return config
