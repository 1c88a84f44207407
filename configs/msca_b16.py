r"""MSCA-B/16 x 8 frames: a frame-wise ViT. Two of twelve heads attend to keys and values of the neighbouring frames.

Paper: MSCA, Tables 1-5. Table 1: top-1 76.47 %, top-5 92.88 % on Kinetics-400, ten clips x three crops, from
ImageNet-21k weights.
Cost: 86,106,256 parameters, 140.5 G multiply-adds per view (134.8 G in products with weights), as `vit_b16`, for every
variant.
As in the paper: python main.py --config=configs/msca_b16.py --config.data.root=DIR --config.data.num_classes=N \
    --config.init.weights=ViT-B_16.npz --config.init.allow="('pre_logits',)"
From scratch: python main.py --config=configs/msca_b16.py --config.data.root=DIR --config.data.num_classes=N
ViT-B_16.npz is Google's ViT of ImageNet-21k (MSCA, section 4; README.md of VideoNetworks/TokShift-Transformer).
Rows of the paper's tables: python -m benchmarks.tables msca/1 --config.data.root=DIR (docs/papers/msca.md)

Other readings, as overrides:
  the heads of the authors' code, zeros beyond the clip, the first head from the frame after, the last from before:
                       --config.model.boundary=zero --config.model.placement=ends
Config of the authors' code (18 epochs, a shorter side from 224 pixels): --config=configs/msca_b16.py:released
"""

from configs.base import base
from configs.loading import require
from configs.sources import cite, guess

CODE = "VideoNetworks/TokShift-Transformer"
FILES = {
    "msca": f"{CODE}, MSCA.diff, config/custom/kinetics400/k400_attentionshift_div4_8x32_base_224.yml",
    "tokenshift": f"{CODE}, config/custom/kinetics400/k400_tokshift_div4_8x32_base_224.yml",
    "vit": f"{CODE}, config/custom/kinetics400/k400_vit_8x32_224.yml",
}


def get_config(variant: str = "paper"):
    require(variant in ("paper", "released"), f"the variant after the colon must be paper or released, not {variant!r}")
    config = base("msca")
    cite(config, "MSCA, Table 1: the best number of heads", model=dict(direction="heads", before=1, after=1))
    cite(config, "MSCA, Table 2: the best choice", model=dict(moved="KV"))
    cite(config, "MSCA, eq. 17", model=dict(placement="first"))
    guess(
        config,
        "the paper does not define the frames beyond the clip",
        "the frame itself, so that a clip of one frame is an image to ViT; the authors' code has zeros",
        model=dict(boundary="keep"),
    )
    return recipe(config, variant)


def recipe(config, variant: str):
    """Sets the fields of the recipe that MSCA's paper gives, or those of the config files of TokenShift and MSCA."""
    file = FILES["msca" if variant == "paper" else config.model.name]
    cite(
        config,
        "MSCA, section 4.1" if variant == "paper" else f"{file}: T_SIZE, T_STEP, TRN_PATCH_SIZE",
        data=dict(frames=8, stride=32, size=224),
    )
    cite(config, f"{file}: BASE_NET", model=dict(size="B", patch_size=16))
    cite(
        config,
        f"{CODE}, data/augmentation.py: Train_ClipAug",
        data=dict(
            crop="jitter",
            flip=0.5,
            brightness=0.1,
            saturation=0.1,
            gamma=0.1,
            hue=0.1,
            colour_ranges="tokenshift",
        ),
    )
    cite(config, f"{CODE}, data/augmentation.py: short_side_resize", data=dict(resize="bicubic"))
    cite(
        config,
        f"{file}: PIXEL_MEAN, PIXEL_STD, DROP_OUT",
        model=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), dropout=0.0),
    )
    cite(
        config,
        f"{CODE}, main_ddp_shift_v3.py: LabelSmoothingCrossEntropy, which LABEL_SMOOTH=0.01 only switches on",
        train=dict(label_smoothing=0.1),
    )
    if variant == "paper":
        cite(
            config,
            "MSCA, section 4.1",
            data=dict(short_side=(244, 330)),
            train=dict(total_epochs=12.0),
            optim=dict(drop_epochs=(10.0,)),
        )
    else:
        cite(
            config,
            f"{file}: TRN_SHORT_SIDE_RANGE, of which NumPy's randint does not draw the upper end, EPOCH, LR_STEPS",
            data=dict(short_side=(224, 329)),
            train=dict(total_epochs=18.0),
            optim=dict(drop_epochs=(10.0, 15.0)),
        )
    _optimizer(config, variant, file)
    cite(config, f"{CODE}, vit_models/modeling.py: no stochastic depth", model=dict(drop_path=0.0))
    _clips_and_views(config, variant, file)
    config.train.eval_every_epochs = 1.0
    return config


def _clips_and_views(config, variant: str, file: str) -> None:
    sampling = {"paper": "random_starts", "released": "tokenshift"}[variant]
    cite(
        config,
        "MSCA, section 4.1" if variant == "paper" else f"{CODE}, data/dataset.py: read_clip, read_random_clip",
        data=dict(sampling=sampling, fps=None),
    )
    cite(
        config,
        "MSCA, section 4.1" if variant == "paper" else f"{CODE}, main_ddp_shift_v3.py --evaluate, and VAL_TEST_AUG",
        eval=dict(clips=10, crops=3),
    )
    main = "MSCA.diff, main.py" if variant == "paper" else "main_ddp_shift_v3.py"
    cite(config, f"{CODE}, {main}: validate averages the outputs of the head", eval=dict(average="logits"))
    cite(config, f"{file}: VAL_SHORT_SIDE", data=dict(test_short_side=None))  # the size of the crop


def _optimizer(config, variant: str, file: str) -> None:
    fields = "TRN_BATCH on two GPUs, GRADIENT_ACCUMULATION_STEPS, LR_TYPE, LR, LR_SCHEME, MOMENTUM, WEIGHT_DECAY"
    cite(
        config,
        "MSCA, section 4.1" if variant == "paper" else f"{file}: {fields}",
        train=dict(batch_size=420, accumulate=10),
        optim=dict(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, schedule="step"),
    )
    cite(
        config,
        "MSCA, section 4.1" if variant == "paper" else f"{CODE}, main_ddp_shift_v3.py: gamma of MultiStepLR",
        optim=dict(drop_factor=0.1),
    )
    cite(
        config,
        f"{CODE}, main_ddp_shift_v3.py: torch.optim.SGD without Nesterov or warm-up",
        optim=dict(nesterov=False, decay="all", warmup_epochs=None),
    )
    cite(config, f"{file}: CLIP_GD", optim=dict(clip_norm=1.0))
