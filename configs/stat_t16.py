"""STAT x 16 frames: attention that shrinks with temporal distance, after a convolutional stem.

Paper: STAT, Tables 1-7. Table 6: top-1 78.6 %, top-5 93.8 % on Kinetics-400 from random weights, five clips x one crop.
Cost: 44,058,928 parameters, 58.9 G multiply-adds per view. The paper's 59.1 G include the norms.
Command: python main.py --config=configs/stat_t16.py --config.data.root=DIR --config.data.num_classes=N
The paper leaves its recipe to an appendix that was not published. It names AdamW "as the recipe following" DeiT, and
the augmentation of MViT: this is DeiT's optimizer with the augmentation and the regularisation of MViT, two clips of
each video in a batch. MViT's optimizer: --config=configs/stat_t16.py:mvit

Rows of the paper's tables: python -m benchmarks.tables stat/1 --config.data.root=DIR (docs/papers/stat.md)
Other readings, as overrides:
  no norm after pooling, as in eq. 2 and 6, or MViT's: --config.model.pool_norm=none|mvit
Something-Something v2, from the weights of a run on Kinetics that --mode=export wrote to the folder K400:
Command: python main.py --config=configs/ssv2.py:stat_t16 --config.data.root=DIR --config.init.weights=K400
"""

from configs.base import base
from configs.loading import require


def get_config(variant: str = "deit"):
    return recipe(frames=16, window=3, variant=variant)


def recipe(*, frames: int, window: int, variant: str):
    """Returns the config of a STAT, with DeiT's optimizer ('deit') or MViT's ('mvit')."""
    require(variant in ("deit", "mvit"), f"the variant after the colon must be deit or mvit, not {variant!r}")
    config = base("stat")
    config.data.frames = frames
    config.data.update(
        test_short_side=256, repeats=2, crop="resized", randaugment=4, magnitude=7.0, magnitude_std=0.5, erasing=0.25
    )
    config.model.window = window
    config.model.update(drop_path=0.2, head_dropout=0.5)
    config.train.update(eval_every_epochs=5.0, batch_size=512, label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    config.optim.update(weight_decay=0.05, start_lr=1e-6)
    if variant == "deit":
        config.train.total_epochs = 300.0
        config.optim.update(lr=5e-4, warmup_epochs=5.0, end_lr=1e-5)
    else:
        config.train.total_epochs = 200.0
        config.optim.update(lr=1.6e-3, warmup_epochs=30.0, end_lr=1e-6, clip_norm=1.0)
    config.eval.clips, config.eval.crops = 5, 1
    return config
