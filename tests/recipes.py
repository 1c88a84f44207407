"""The recipes of the papers, written from the papers and from the authors' public files, not from configs/.

A value of one of those files has the name that it has there. The fields are those of the configs.
"""

HALF, GREY = ((0.5,) * 3, (0.5,) * 3), ((0.45,) * 3, (0.225,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalised(mean_and_std):
    return {"model.mean": mean_and_std[0], "model.std": mean_and_std[1]}


# VideoNetworks/TokShift-Transformer, config/custom/kinetics400/k400_tokshift_div4_8x32_base_224.yml; of 2 GPUs.
TOKSHIFT = dict(TRN_BATCH=21, GPUS=2, LR=0.1, LR_STEPS=(10, 15, 18), EPOCH=18, MOMENTUM=0.9, WEIGHT_DECAY=0.0)
TOKSHIFT |= dict(GRADIENT_ACCUMULATION_STEPS=10, CLIP_GD=1.0, T_SIZE=8, T_STEP=32, TRN_PATCH_SIZE=224, DROP_OUT=0.0)
TOKSHIFT |= dict(TRN_SHORT_SIDE_RANGE=(224, 330), SHIFT_DIV=4, VAL_TEST_AUG=3, PIXEL_MEAN=127.5, PIXEL_STD=0.5)


def of_tokshift(sampling, short_side, epochs, drops):
    """The fields that TokenShift, MSCA and their ViT share."""
    return {
        "data.frames": TOKSHIFT["T_SIZE"],
        "data.sampling": sampling,
        "data.fps": None,
        "data.test_short_side": None,  # VAL_SHORT_SIDE: 224
        "data.stride": TOKSHIFT["T_STEP"],
        "data.size": TOKSHIFT["TRN_PATCH_SIZE"],
        "data.short_side": short_side,
        "data.crop": "jitter",
        "data.resize": "bicubic",  # Image.BICUBIC
        "data.flip": 1 / 2,  # clip_random_hflip(2)
        **{f"data.{name}": 1 / 10 for name in ("brightness", "saturation", "gamma", "hue")},  # clip_random_...(10)
        "data.colour_ranges": "tokenshift",
        "model.size": "B",
        "model.patch_size": 16,
        "model.dropout": TOKSHIFT["DROP_OUT"],
        "model.drop_path": 0.0,
        **normalised(((TOKSHIFT["PIXEL_MEAN"] / 255,) * 3, (TOKSHIFT["PIXEL_STD"],) * 3)),
        "train.batch_size": TOKSHIFT["TRN_BATCH"] * TOKSHIFT["GPUS"] * TOKSHIFT["GRADIENT_ACCUMULATION_STEPS"],
        "train.accumulate": TOKSHIFT["GRADIENT_ACCUMULATION_STEPS"],
        "train.label_smoothing": 0.1,  # LabelSmoothingCrossEntropy(smoothing=0.1)
        "train.total_epochs": epochs,
        "optim.name": "sgd",
        "optim.lr": TOKSHIFT["LR"],
        "optim.momentum": TOKSHIFT["MOMENTUM"],
        "optim.nesterov": False,
        "optim.weight_decay": TOKSHIFT["WEIGHT_DECAY"],
        "optim.decay": "all",
        "optim.schedule": "step",
        "optim.drop_epochs": drops,
        "optim.drop_factor": 0.1,  # MultiStepLR(gamma=0.1)
        "optim.warmup_epochs": None,
        "optim.clip_norm": TOKSHIFT["CLIP_GD"],
        "eval.clips": 10,
        "eval.crops": TOKSHIFT["VAL_TEST_AUG"],
        "eval.average": "logits",  # output.mean(1)
    }


# numpy.random.randint(224, 330) does not return 330. Of LR_STEPS, 18 is the end of the run.
RELEASED = of_tokshift("tokenshift", (224, 329), TOKSHIFT["EPOCH"], TOKSHIFT["LR_STEPS"][:2])
MSCA_PAPER = of_tokshift("random_starts", (244, 330), 12, (10,))  # section 4.1
MSCA = {
    "model.direction": "heads",
    "model.moved": "KV",
    "model.before": 1,
    "model.after": 1,
    "model.placement": "first",
    "model.boundary": "keep",
}

# facebookresearch/TimeSformer, configs/Kinetics/TimeSformer_{divST,jointST}_8x32_224.yaml, and its defaults.py.
SOLVER = dict(BASE_LR=0.005, STEPS=[0, 11, 14], LRS=[1, 0.1, 0.01], MAX_EPOCH=15, MOMENTUM=0.9, WEIGHT_DECAY=1e-4)
TIMESFORMER = {
    "data.frames": 8,
    "data.sampling": "slowfast",
    "data.fps": 30.0,  # TARGET_FPS
    "data.test_starts": "from_first",  # delta * clip_idx / num_clips
    "data.test_short_side": None,  # TEST_CROP_SIZE: 224
    "data.stride": 32,
    "data.size": 224,
    "data.short_side": (256, 320),
    "data.crop": "jitter",
    "data.resize": "bilinear",  # torch.nn.functional.interpolate(mode="bilinear")
    "data.flip": 0.5,
    "model.size": "B",
    "model.patch_size": 16,
    "model.dropout": 0.0,
    "model.drop_path": 0.1,
    **normalised(GREY),
    "train.batch_size": 64,  # GLOBAL_BATCH_SIZE
    "train.label_smoothing": 0.0,
    "train.total_epochs": SOLVER["MAX_EPOCH"],
    "optim.name": "sgd",
    "optim.lr": SOLVER["BASE_LR"],
    "optim.momentum": SOLVER["MOMENTUM"],
    "optim.nesterov": True,
    "optim.weight_decay": SOLVER["WEIGHT_DECAY"],
    "optim.decay": "all",
    "optim.schedule": "step",
    "optim.drop_epochs": tuple(SOLVER["STEPS"][1:]),
    "optim.drop_factor": SOLVER["LRS"][1] / SOLVER["LRS"][0],
    "optim.warmup_epochs": None,
    "optim.clip_norm": None,
    "eval.clips": 1,
    "eval.crops": 3,
    "eval.average": "logits",  # ENSEMBLE_METHOD: sum
}

# google-research/scenic, scenic/projects/vivit/configs/kinetics400/vivit_base_k400.py
VIVIT = {
    "data.frames": 32,
    "data.sampling": "dmvr",
    "data.fps": None,
    "data.test_short_side": 256,  # min_resize
    "data.stride": 2,
    "data.size": 224,
    "data.short_side": (256, 256),  # min_resize
    "data.stretch": (0.9, 1.33),
    "data.colour_jitter": 0.8,
    "data.grey": 0.1,
    "data.crop": "jitter",
    "data.resize": "bilinear",  # tf.image.ResizeMethod.BILINEAR
    "data.flip": 0.5,
    "model.size": "B",
    "model.patch_size": 16,
    "model.patch_frames": 2,
    "model.positions": "joint",
    "model.gelu": "tanh",
    "model.dropout": 0.0,
    "model.drop_path": 0.0,
    **normalised(HALF),  # zero_centering
    "train.batch_size": 64,
    "train.label_smoothing": 0.0,
    "train.total_epochs": 30,
    "optim.name": "sgd",
    "optim.lr": 0.1,
    "optim.momentum": 0.9,
    "optim.nesterov": False,
    "optim.weight_decay": 0.0,
    "optim.decay": "all",
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 2.5,
    "optim.clip_norm": 1.0,
    "eval.clips": 4,
    "eval.crops": 3,
    "eval.average": "logits",
}

# facebookresearch/SlowFast, configs/Kinetics/VIT_B_VTN.yaml, and slowfast/config/defaults.py.
VTN = {
    "data.frames": 16,
    "data.sampling": "slowfast",
    "data.test_starts": "from_first",
    "data.test_short_side": 256,  # TRAIN_JITTER_SCALES[0]
    "data.stride": 8,
    "data.fps": 25.0,
    "data.size": 224,
    "data.short_side": (256, 320),
    "data.crop": "jitter",
    "data.resize": "bilinear",
    "data.flip": 0.5,
    "model.backbone": "vit",
    "model.size": "B",
    "model.patch_size": 16,
    "model.temporal_depth": 3,
    "model.window": (18,),
    "model.temporal_dropout": 0.1,
    "model.head_dropout": 0.5,
    "model.dropout": 0.0,
    "model.drop_path": 0.0,
    **normalised(GREY),
    "train.batch_size": 16,
    "train.label_smoothing": 0.0,
    "train.total_epochs": 25,
    "optim.name": "sgd",
    "optim.lr": 1e-3,
    "optim.momentum": 0.9,
    "optim.nesterov": True,
    "optim.weight_decay": 1e-4,
    "optim.decay": "all_but_batch_norm",
    "optim.schedule": "step",
    "optim.drop_epochs": (13, 24),
    "optim.drop_factor": 0.1,
    "optim.warmup_epochs": None,
    "optim.clip_norm": None,
    "eval.clips": 1,
    "eval.crops": 1,
    "eval.frames": 250,
}

# HaViT, Table 1.
HAVIT_TABLE_1 = {
    "train.batch_size": 64,
    "train.total_epochs": 30,
    "optim.name": "adamw",
    "optim.b1": 0.9,
    "optim.b2": 0.999,
    "optim.lr": 2.5e-4,
    "optim.weight_decay": 0.05,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 3,
}
# MEViT and HaViT, section 4.1.
CROPS = {"data.size": 224, "data.short_side": (256, 320), "data.crop": "jitter"}
# Named by neither paper.
OPEN = {
    "data.flip": 0.5,
    "data.resize": "bilinear",
    "model.drop_path": 0.0,
    "train.label_smoothing": 0.0,
    "optim.clip_norm": None,
    "optim.decay": "kernels",
    "eval.average": "probabilities",
    **normalised(HALF),
}
HAVIT_RECIPE = {**HAVIT_TABLE_1, **CROPS, "data.sampling": "uniform", "model.dropout": 0.1, "model.hybrid": "combined"}
HAVIT_RECIPE |= {"eval.clips": 4, "eval.crops": 3}
HAVIT = {**HAVIT_RECIPE, "model.size": "B", "model.patch_size": 16, "data.frames": 8, "model.attention": "divided"}

# facebookresearch/SlowFast, configs/Kinetics/MVIT_B_16x4_CONV.yaml.
STAT = {
    "data.frames": 16,
    "data.sampling": "uniform",
    "data.size": 224,
    "data.test_short_side": 256,
    "data.crop": "resized",
    "data.area": (0.08, 1.0),
    "data.aspect": (0.75, 1.3333),
    "data.resize": "bilinear",  # random_resized_crop: interpolate(mode="bilinear")
    "data.flip": 0.5,
    "data.repeats": 2,
    "data.randaugment": 4,  # rand-m7-n4-mstd0.5-inc1
    "data.magnitude": 7,
    "data.magnitude_std": 0.5,
    "data.erasing": 0.25,
    "model.window": 3,
    "model.stem_convs": 3,
    "model.aggregation_layers": 1,
    "model.long_key": "class",
    "train.mixup": 0.8,
    "train.cutmix": 1.0,
    "train.mix_probability": 1.0,
    "train.mix_switch": 0.5,
    "train.label_smoothing": 0.1,
    "eval.clips": 5,
    "eval.crops": 1,
    "optim.name": "adamw",
    "optim.b1": 0.9,
    "optim.b2": 0.999,
    "optim.decay": "kernels",
    "optim.schedule": "cosine",
    "optim.weight_decay": 0.05,
    "optim.start_lr": 1e-6,
}
# facebookresearch/deit, main.py: 5e-4 at a batch of 512, the default schedule.
DEIT = {
    "optim.lr": 5e-4 * 512 / 512,
    "optim.warmup_epochs": 5,
    "optim.end_lr": 1e-5,
    "train.total_epochs": 300,
    "optim.clip_norm": None,
}
MVIT_SOLVER = {
    "optim.lr": 1.6e-3,
    "optim.warmup_epochs": 30,
    "optim.end_lr": 1e-6,
    "train.total_epochs": 200,
    "optim.clip_norm": 1.0,
}
STAT_OPEN = {
    "model.size": "STAT",
    "model.depths": (2, 11, 2),
    "model.patch_size": 8,
    "model.pool_norm": "keys",
    "model.head_dropout": 0.5,
    "model.drop_path": 0.2,
    "model.dropout": 0.0,
    "train.batch_size": 512,
    "eval.average": "probabilities",
    **normalised(HALF),
}
DICTIONARY = {"model.dictionary": 112}

# Of each config, what its sources state, and what is a guess.
EXPECTED = {
    "msca_b16": (MSCA_PAPER | MSCA, {"model.boundary"}),
    "msca_b16:released": (RELEASED | MSCA, {"model.boundary"}),
    "tokenshift_b16": (RELEASED | {"model.fold": TOKSHIFT["SHIFT_DIV"], "model.boundary": "zero"}, set()),
    "tokenshift_b16:msca": (MSCA_PAPER | {"model.fold": 4, "model.boundary": "zero"}, set()),
    "vit_b16": (MSCA_PAPER, set()),
    "vit_b16:tokenshift": (RELEASED, set()),
    "timesformer_b16": (TIMESFORMER, set()),
    "joint_b16": (
        TIMESFORMER | {"model.patch_frames": 1, "model.positions": "separate", "model.gelu": "exact"},
        set(),
    ),
    "vivit_b16": (VIVIT, set()),
    "vtn_vit_b16": (VTN, set()),
    "vtn_resnet50": (
        {field: value for field, value in VTN.items() if field != "model.patch_size"}
        | {
            "model.backbone": "resnet",
            "model.depths": (3, 4, 6, 3),
            "model.stem": 64,
            "model.projection": "linear",
        },
        {"model.backbone", "model.depths", "model.stem", "model.projection"},
    ),
    "mevit_b16": (
        {
            **CROPS,
            **HAVIT_TABLE_1,
            **OPEN,
            "data.frames": 8,
            "data.sampling": "uniform",
            "model.size": "B",
            "model.patch_size": 16,
            "model.depth": 11,  # section 4.3
            "model.motion_blocks": 11 - 4,
            "model.class_blocks": 1,
            "model.block_size": 2,  # the best of Table 1
            "model.dropout": 0.0,
            "eval.clips": 1,
            "eval.crops": 3,
        },
        {*HAVIT_TABLE_1, *OPEN, "data.frames", "data.sampling", "model.dropout"},
    ),
    "havit_b16": (
        {**HAVIT, **OPEN, **DICTIONARY, "model.class_blocks": 2},
        {*OPEN, *DICTIONARY, "model.class_blocks"},
    ),
    "havit_s16": (
        {**HAVIT, **OPEN, **DICTIONARY, "model.class_blocks": 2, "model.size": "S"},
        {*OPEN, *DICTIONARY, "model.class_blocks"},
    ),
    "swin_t": (
        {
            **HAVIT_RECIPE,
            **OPEN,
            **DICTIONARY,
            **normalised(IMAGENET),
            "data.frames": 16,
            "model.size": "Swin-T",
            "model.depths": (2, 2, 6, 2),
            "model.window": (8, 7, 7),
            "model.patch_frames": 2,
            "model.patch_size": 4,
        },
        {*(OPEN.keys() - {"model.mean", "model.std"}), *DICTIONARY, "data.frames"},
    ),
    "cvt_13": (
        {
            **HAVIT_RECIPE,
            **OPEN,
            **DICTIONARY,
            **normalised(IMAGENET),
            "data.frames": 8,
            "model.size": "CvT-13",
            "model.depths": (1, 2, 10),
            "model.patch_size": 4,
            "model.gelu": "quick",
            "model.scale": "width",
            "model.joint": "last",
        },
        {*(OPEN.keys() - {"model.mean", "model.std"}), *DICTIONARY, "data.frames", "model.joint"},
    ),
    "stat_t16": (STAT | DEIT | STAT_OPEN, {*STAT_OPEN}),
    "stat_t16:mvit": (STAT | MVIT_SOLVER | STAT_OPEN, {*STAT_OPEN}),
    "stat_t32": (STAT | DEIT | STAT_OPEN | {"data.frames": 32, "model.window": 5}, {*STAT_OPEN}),
    "stat_t64": (
        STAT | DEIT | STAT_OPEN | {"data.frames": 64, "model.window": 7, "eval.clips": 3, "eval.crops": 3},
        {*STAT_OPEN},
    ),
}

# What a data set sets in a recipe: the layout of its authors, and the number of classes that their papers give.
DATA_SETS = {
    "kinetics400": {"data.source": "kinetics", "data.num_classes": 400, "data.missing": "leave_out"},
    "kinetics600": {"data.source": "kinetics", "data.num_classes": 600, "data.missing": "leave_out"},
    "ssv2": {"data.source": "something", "data.num_classes": 174},
    "ucf101": {"data.source": "ucf101", "data.num_classes": 101},
    "hmdb51": {"data.source": "hmdb51", "data.num_classes": 51},
}
# On Something-Something v2 besides, by the beginning of the config's name: the values, and which of them are guesses.
SSV2 = {
    # configs/SSv2/TimeSformer_divST_8_224.yaml: RANDOM_FLIP False; timesformer/datasets/ssv2.py
    "timesformer": ({"data.flip": 0.0, "data.sampling": "timesformer_ssv2"}, set()),
    "joint": ({"data.flip": 0.0, "data.sampling": "timesformer_ssv2"}, set()),
    # scenic/projects/vivit/configs/something_something_v2/vivit_large_factorised_encoder.py: stride
    "vivit": ({"data.flip": 0.0, "data.sampling": "dmvr", "data.stride": 1}, {"data.flip"}),
    "stat": ({"data.flip": 0.0, "eval.clips": 1, "eval.crops": 3}, {"data.flip"}),
    "havit": ({"data.flip": 0.0}, {"data.flip"}),
    "": ({"data.flip": 0.0, "data.sampling": "uniform"}, {"data.flip", "data.sampling"}),
}
