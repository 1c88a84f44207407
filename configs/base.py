"""Every field of every section, with its default. An experiment sheet starts from `base(model)` and says what differs.

Each section is the keyword arguments of one callable, so no field goes unread and none can be misspelt:
data: input_pipeline.Pipeline; model: vidformers.build; init: vidformers.pretrained.Init; train: vidformers.training.train.Loop;
optim: vidformers.training.optim.make_optimizer; eval: vidformers.training.evaluate.Protocol; mesh: vidformers.parallel.sharding.make_mesh;
checkpoint: vidformers.training.checkpoint.Checkpoints. Their docstrings say what each field does.
"""

import copy

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# The fields that one model has and others do not, or that have other defaults.
OWN = {
    "vit": {},
    "timesformer": dict(starts_as_image=True),
    "joint": dict(patch_frames=1, positions="separate", gelu="exact"),
    "mevit": dict(
        block_size=2,
        motion_blocks=7,
        class_blocks=1,
        order="motion_space",
        class_in_motion=True,
        class_queries_motion=False,
        temporal_fc=False,
    ),
    "havit": dict(attention="divided", class_blocks=2, class_token="late", temporal_fc=False, share_dictionary=False),
    "msca": dict(direction="heads", moved="KV", before=1, after=1, shifted_blocks=placeholder(int), boundary="keep"),
    "tokenshift": dict(fold=4, boundary="zero"),
    "vtn": dict(
        backbone="vit",
        depths=(3, 4, 6, 3),
        stem=64,
        temporal_depth=3,
        window=(18,),
        tie_global=False,
        temporal_dropout=0.1,
        head_dropout=0.5,
        frames_at_once=placeholder(int),
    ),
    "swin": dict(size="Swin-T", patch_size=4, depths=(2, 2, 6, 2), window=(8, 7, 7), patch_frames=2),
    "cvt": dict(size="CvT-13", patch_size=4, depths=(1, 2, 10), joint="last", scale="width"),
    "stat": dict(
        size="STAT",
        patch_size=8,
        depths=(2, 11, 2),
        window=3,
        long_key="class",
        stem_convs=3,
        stem_strides="same_grid",
        aggregation_layers=1,
    ),
}


def base(model: str) -> ConfigDict:
    """The defaults, with the section `model` of the model of that name."""
    if model not in OWN:
        raise ValueError(f"the model after the colon must be one of {', '.join(OWN)}, not {model!r}")
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        source="csv",
        root=".",
        name=placeholder(str),
        train=placeholder(str),
        val=placeholder(str),
        split=1,
        missing="error",
        exclude=placeholder(str),
        num_classes=400,
        classes=placeholder(str),
        frames=8,
        sampling="uniform",
        stride=32,
        fps=placeholder(float),
        test_starts="spread",
        frame_rate=30.0,
        size=224,
        short_side=(256, 320),
        test_short_side=placeholder(int),
        repeats=1,
        crop="jitter",
        area=(0.08, 1.0),
        aspect=(0.75, 1.3333),
        flip=0.5,
        flip_swaps=(),
        flip_sides=False,
        brightness=0.0,
        saturation=0.0,
        gamma=0.0,
        hue=0.0,
        randaugment=0,
        magnitude=7.0,
        magnitude_std=0.5,
        erasing=0.0,
        workers=4,
        prefetch=2,
        limit_seconds=60.0,
        max_bad_fraction=0.01,
    )
    config.model = dict(
        name=model,
        size="B",
        width=placeholder(int),
        heads=placeholder(int),
        depth=placeholder(int),
        mlp_ratio=4,
        patch_size=16,
        dictionary=0,
        hybrid="combined",
        kernel="softmax",
        cosine_index="sequence",
        backend="auto",
        dropout=0.0,
        drop_path=0.0,
        dtype="bfloat16",
        remat="none",
        unroll=1,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    config.model.update(copy.deepcopy(OWN[model]))  # placeholders are objects, which configs must not share
    # One truth for what the data and the model share: overriding either sets both.
    config.model.frames = config.data.get_ref("frames")
    config.model.image_size = config.data.get_ref("size")
    config.model.num_classes = config.data.get_ref("num_classes")
    config.init = dict(
        weights=placeholder(str), time="zero", tube="centre", patch="refuse", head="auto", channels="rgb", allow=()
    )
    config.train = dict(
        total_steps=placeholder(int),
        total_epochs=placeholder(float),
        batch_size=64,
        accumulate=1,
        log_every_steps=50,
        eval_every_steps=placeholder(int),
        eval_every_epochs=placeholder(float),
        label_smoothing=0.0,
        profile_steps=(),
        mixup=0.0,
        cutmix=0.0,
        mix_probability=1.0,
        mix_switch=0.5,
    )
    config.optim = dict(
        name="adamw",
        lr=2.5e-4,
        weight_decay=0.05,
        decay="kernels",
        b1=0.9,
        b2=0.999,
        momentum=0.9,
        nesterov=False,
        schedule="cosine",
        warmup_steps=placeholder(int),
        warmup_epochs=placeholder(float),
        drop_epochs=(),
        drop_factor=0.1,
        clip_norm=placeholder(float),
        ema_decay=placeholder(float),
        frozen=(),
        in_backward=False,
    )
    config.eval = dict(
        clips=1,
        crops=3,
        frames=placeholder(int),
        average="probabilities",
        batch_size=placeholder(int),
        views_at_once=1,
        on_bad="error",
        checkpoint="latest",
    )
    config.mesh = dict(data=-1, fsdp=1, context=1)
    config.checkpoint = dict(every_steps=1000, keep=2, best="val/top1@1x1")
    return config
