r"""STAT x 16 frames: attention that shrinks with temporal distance, after a convolutional stem.

Paper: STAT, Tables 1-7. Table 6: top-1 78.6 %, top-5 93.8 % on Kinetics-400 from random weights, five clips x one crop.
Cost: 44,058,928 parameters, 58.9 G multiply-adds per view. The paper's 59.1 G include the norms.
As in the paper, from scratch: python main.py --config=configs/stat_t16.py --config.data.root=DIR \
    --config.data.num_classes=N
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
from configs.sources import cite, guess

DEIT = "facebookresearch/deit, main.py, the recipe that STAT names"
MVIT = "facebookresearch/SlowFast, configs/Kinetics/MVIT_B_16x4_CONV.yaml"


def get_config(variant: str = "deit"):
    return recipe(frames=16, window=3, variant=variant)


def recipe(*, frames: int, window: int, variant: str):
    """Returns the config of a STAT, with DeiT's optimizer ('deit') or MViT's ('mvit')."""
    require(variant in ("deit", "mvit"), f"the variant after the colon must be deit or mvit, not {variant!r}")
    config = base("stat")
    _architecture(config, window)
    cite(
        config,
        "STAT, Implementation Details",
        data=dict(frames=frames, sampling="uniform", size=224, test_short_side=256),
        optim=dict(name="adamw"),
        eval=dict(clips=5, crops=1),
    )
    _augmentation(config)
    guess(
        config,
        "the paper leaves its regularisation to an appendix that was not published",
        f"{MVIT}: MODEL.DROPOUT_RATE, MVIT.DROPPATH_RATE, MVIT.DROPOUT_RATE",
        model=dict(head_dropout=0.5, drop_path=0.2, dropout=0.0),
    )
    guess(
        config,
        "the paper leaves the batch size to an appendix that was not published",
        "512, the batch of MViT's paper and the unit of DeiT's learning rate",
        train=dict(batch_size=512),
    )
    guess(
        config,
        "the paper does not name the normalisation of pixels",
        "that of ViT",
        model=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    guess(
        config,
        "the paper does not say whether scores are logits or probabilities",
        "PySlowFast's head",
        eval=dict(average="probabilities"),
    )
    _optimizer(config, variant)
    config.train.eval_every_epochs = 5.0
    return config


def _augmentation(config) -> None:
    cite(
        config,
        f"{MVIT}, the augmentation that STAT names: DATA and AUG",
        data=dict(
            crop="resized",
            area=(0.08, 1.0),
            aspect=(0.75, 1.3333),
            repeats=2,
            randaugment=4,
            magnitude=7.0,
            magnitude_std=0.5,
            erasing=0.25,
        ),
    )
    cite(
        config,
        f"{MVIT}, and facebookresearch/deit, main.py, alike: MIXUP",
        train=dict(mixup=0.8, cutmix=1.0, mix_probability=1.0, mix_switch=0.5, label_smoothing=0.1),
    )
    cite(config, "facebookresearch/SlowFast, slowfast/config/defaults.py: DATA.RANDOM_FLIP", data=dict(flip=0.5))
    cite(
        config,
        "facebookresearch/SlowFast, slowfast/datasets/transform.py: random_resized_crop. AUG.INTERPOLATION=bicubic is "
        "that of RandAugment alone",
        data=dict(resize="bilinear"),
    )


def _architecture(config, window: int) -> None:
    cite(config, "STAT, Implementation Details: the window of short-term attention", model=dict(window=window))
    cite(config, "STAT, Table 5: the best stem", model=dict(stem_convs=3))
    cite(config, "STAT, Table 4: the best number of layers", model=dict(aggregation_layers=1))
    cite(config, "STAT, Table 3: the best key", model=dict(long_key="class"))
    guess(
        config,
        "the paper leaves the stages, their width, heads and the split of blocks to an appendix that was not published",
        "MViT-B without its first stage, which agrees with the costs of STAT's Tables 1, 2 and 6",
        model=dict(size="STAT", depths=(2, 11, 2), patch_size=8),
    )
    guess(
        config,
        "eqs. 2 and 6 have no norm after pooling, and MViT, on which STAT builds, has norms",
        "norms of pooled keys and values",
        model=dict(pool_norm="keys"),
    )


def _optimizer(config, variant: str) -> None:
    if variant == "deit":
        cite(
            config,
            f"{DEIT}: --lr, --weight-decay, --sched, --warmup-epochs, --warmup-lr, --min-lr, --epochs, --clip-grad",
            train=dict(total_epochs=300.0),
            optim=dict(
                lr=5e-4,
                weight_decay=0.05,
                schedule="cosine",
                warmup_epochs=5.0,
                start_lr=1e-6,
                end_lr=1e-5,
                clip_norm=None,
            ),
        )
        cite(
            config,
            f"{DEIT}: --opt-betas of PyTorch, and timm's create_optimizer",
            optim=dict(b1=0.9, b2=0.999, decay="kernels"),
        )
        return
    cite(
        config,
        f"{MVIT}: SOLVER",
        train=dict(total_epochs=200.0),
        optim=dict(weight_decay=0.05, schedule="cosine", warmup_epochs=30.0, start_lr=1e-6, end_lr=1e-6, clip_norm=1.0),
    )
    cite(config, "MViT, appendix: 1.6e-3 at a batch of 512", optim=dict(lr=1.6e-3))
    cite(
        config,
        f"{MVIT}: SOLVER.ZERO_WD_1D_PARAM, and the betas of PyTorch",
        optim=dict(b1=0.9, b2=0.999, decay="kernels"),
    )
