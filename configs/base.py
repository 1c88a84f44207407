"""Every field of every section of a config, with its default. Every config starts from `base(model)`.

Each section holds the keyword arguments of one callable, whose docstring explains the fields:

    data        input_pipeline.Pipeline
    model       vidformers.build: the fields of ModelConfig.from_size and those of the function of the model
    init        vidformers.pretrained.Init
    train       vidformers.training.config.TrainConfig
    optim       vidformers.training.optim.OptimConfig
    eval        vidformers.training.evaluate.EvalProtocol
    mesh        vidformers.parallel.mesh.make_mesh
    checkpoint  vidformers.training.checkpoint.Checkpoints
    own         vidformers.training.config.OwnConfig

A field without a default value is a `placeholder` of its type and reads as None. Three defaults are those of a full
training run and differ from the defaults of the callables: data.stride, data.workers and model.dtype.
"""

from types import NoneType
from typing import get_args

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base(model: str) -> ConfigDict:
    """Returns the default config of a model.

    Args:
        model: a key of `vidformers.MODELS`.
    Raises:
        ValueError: the model is unknown.
    """
    config = ConfigDict()
    config.seed = 0
    config.data = _data()
    config.model = _model(model)
    # The data and the model share these fields: overriding data.frames also sets model.frames, and the reverse.
    config.model.frames = config.data.get_ref("frames")
    config.model.image_size = config.data.get_ref("size")
    config.model.num_classes = config.data.get_ref("num_classes")
    config.data.val_seed = config.get_oneway_ref("seed")  # follows the seed unless it is given
    config.init = _init()
    config.train = _train()
    config.optim = _optim()
    config.eval = _eval()
    config.mesh = dict(data=-1, fsdp=1, context=1)  # data=-1: all remaining devices
    # Evaluations during training use one centre view (1x1), whatever the section `eval` says.
    config.checkpoint = dict(every_steps=1000, keep=2, best=placeholder(str))
    config.own = dict(minutes=placeholder(float))
    return config


def _model(name: str) -> dict:
    """Returns the section `model`, derived from the registered fields of the model."""
    # Imports JAX. Not at the top, so that a wrong file name or flag is reported without this wait.
    from vidformers.models.registry import MODELS

    if name not in MODELS:
        raise ValueError(f"the model after the colon must be one of {', '.join(MODELS)}, not {name!r}")
    section = dict(name=name)
    for field, parameter in MODELS[name].fields.items():
        if field in ("frames", "image_size", "num_classes", "masked"):  # shared with the data, or only for tests
            continue
        section[field] = parameter.default
        if parameter.default is None:
            (kind,) = (kind for kind in get_args(parameter.annotation) if kind is not NoneType)
            section[field] = placeholder(kind)
    return section | dict(dtype="bfloat16")  # activations of half the size; float32 is the default of `build`


def _data() -> dict:
    return dict(
        source="csv",
        root=".",
        name=placeholder(str),
        train=placeholder(str),
        val=placeholder(str),
        test=placeholder(str),
        val_seed=0,
        group=placeholder(str),
        split=1,
        missing="error",
        exclude=placeholder(str),
        labels="one",
        balance=0.0,
        num_classes=400,
        classes=placeholder(str),
        frames=8,
        sampling="uniform",
        stride=32,
        fps=placeholder(float),
        test_starts="spread",
        frame_rate=30.0,
        size=224,
        short_side=placeholder(tuple),
        test_short_side=placeholder(int),
        resize="bilinear",
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
        colour_ranges="moderate",
        colour_jitter=0.0,
        grey=0.0,
        stretch=(1.0, 1.0),
        randaugment=0,
        magnitude=7.0,
        magnitude_std=0.5,
        erasing=0.0,
        workers=4,
        prefetch=2,
        limit_seconds=60.0,
        max_bad_fraction=0.01,
    )


def _init() -> dict:
    return dict(
        weights=placeholder(str), time="zero", tube="centre", patch="refuse", head="auto", channels="rgb", allow=()
    )


def _train() -> dict:
    return dict(
        total_steps=placeholder(int),
        total_epochs=placeholder(float),
        batch_size=64,
        accumulate=1,
        log_every_steps=50,
        eval_every_steps=placeholder(int),
        eval_every_epochs=placeholder(float),
        patience=placeholder(int),
        wandb=placeholder(str),
        label_smoothing=0.0,
        class_weights=0.0,
        profile_steps=(),
        peak_tflops=placeholder(float),
        mixup=0.0,
        cutmix=0.0,
        mix_probability=1.0,
        mix_switch=0.5,
    )


def _optim() -> dict:
    return dict(
        name="adamw",
        lr=2.5e-4,
        weight_decay=0.05,
        decay="kernels",
        b1=0.9,
        b2=0.999,
        momentum=0.9,
        nesterov=False,
        schedule="cosine",
        start_lr=0.0,
        end_lr=0.0,
        warmup_steps=placeholder(int),
        warmup_epochs=placeholder(float),
        drop_epochs=(),
        drop_factor=0.1,
        clip_norm=placeholder(float),
        ema_decay=placeholder(float),
        frozen=(),
        in_backward=False,
        layer_decay=1.0,
    )


def _eval() -> dict:
    return dict(
        clips=1,
        crops=3,
        frames=placeholder(int),
        average="probabilities",
        batch_size=placeholder(int),
        views_at_once=1,
        on_bad="error",
        checkpoint="latest",
        threshold=0.5,
    )
