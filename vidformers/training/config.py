"""The config sections `train`, `checkpoint` and `own`."""

from dataclasses import dataclass

from input_pipeline.fields import shown
from input_pipeline.labels import ONE
from vidformers.errors import multiples_near, require, require_types
from vidformers.training.mixing import Mixing

MAX_BATCH = 1_000_000  # clips or videos
MAX_MINUTES = 100_000


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The config section `train`.

    Args:
        total_steps, total_epochs: the length of the run; give one.
        batch_size: clips per optimizer step, over all devices and micro-batches.
        accumulate: micro-batches per step.
        log_every_steps: steps between two log lines.
        eval_every_steps, eval_every_epochs: interval of the periodic evaluations, which use one centre view. If neither
            is given, the only evaluation is at the end.
        patience: the run ends when `checkpoint.best` has not risen in so many periodic evaluations, and is then
            evaluated as after the last step. The schedule of the learning rate is that of the whole run. None: the run
            ends after the last step.
        wandb: the project of Weights & Biases that gets the metrics, too. Needs the package `wandb`. None: no project.
        label_smoothing: share of the target that is spread over all classes, see `loss.Loss`.
        class_weights: the weight of a class in the loss is its number of training clips to the power of minus this
            number, scaled to a mean of 1 over the clips. 0 weighs all clips equally, 1 all classes.
        profile_steps: (first, last) step to trace for Perfetto and XProf; () traces none.
        peak_tflops: the peak of one device for `train/mfu`, in 1e12 floating-point operations per second. None takes
            the published bfloat16 peak. If that is unknown, `train/mfu` is not written.
        mixup, cutmix, mix_probability, mix_switch: the fields of `mixing.Mixing`. Clips are not mixed if `mixup` and
            `cutmix` are 0.

    Raises:
        ConfigError: a field is out of range.
    """

    total_steps: int | None = None
    total_epochs: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    log_every_steps: int = 50
    eval_every_steps: int | None = None
    eval_every_epochs: float | None = None
    patience: int | None = None
    wandb: str | None = None
    label_smoothing: float = 0.0
    class_weights: float = 0.0
    profile_steps: tuple[int, ...] = ()
    peak_tflops: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5

    def __post_init__(self):
        require_types("train", vars(self), type(self))
        for name in ("batch_size", "accumulate", "log_every_steps", "total_steps", "eval_every_steps", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.{name}={value} must be at least 1.")
        for name in ("total_epochs", "eval_every_epochs"):
            value = getattr(self, name)
            require(value is None or value > 0, f"train.{name}={value} must be above 0.")
        require(
            self.batch_size <= MAX_BATCH,
            f"train.batch_size={self.batch_size} must be at most {MAX_BATCH:,} clips.",
        )
        require(self.wandb != "", "train.wandb must be the name of a project. Leave it out for none.")
        steps = self.profile_steps
        require(
            not steps or len(steps) == 2 and 1 <= steps[0] <= steps[1],
            f"train.profile_steps={shown(steps)} must be a first and a last step, such as (20,24).",
        )
        require(
            self.peak_tflops is None or self.peak_tflops > 0,
            f"train.peak_tflops={self.peak_tflops} must be above 0. Leave it out for the published peak of the device.",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing={self.label_smoothing} must be at least 0 and below 1.",
        )
        require(0 <= self.class_weights <= 1, f"train.class_weights={self.class_weights} must be from 0 to 1.")
        require(
            self.mixing is None or self.batch_size >= 2 * self.accumulate,
            f"train.batch_size={self.batch_size} must be at least 2 x train.accumulate={self.accumulate}, so that "
            "each clip has a partner in its micro-batch. Otherwise set train.mixup and train.cutmix to 0.",
        )

    @property
    def mixing(self) -> Mixing | None:
        """The mixing of clips, or None if clips are not mixed."""
        mixing = Mixing(self.mixup, self.cutmix, self.mix_probability, self.mix_switch)
        return mixing if mixing.active else None

    def check_repeats(self, repeats: int) -> None:
        """Raises ConfigError if the batch does not hold `repeats` clips of each video."""
        require(
            self.batch_size % repeats == 0,
            f"train.batch_size={self.batch_size} must be divisible by data.repeats={repeats}. Set train.batch_size to "
            f"{multiples_near(repeats, self.batch_size)}.",
        )

    def check_devices(self, shards: int) -> None:
        """Raises ConfigError if the batch cannot be divided among `shards` devices and the micro-batches."""
        unit = shards * self.accumulate
        require(
            self.batch_size % unit == 0,
            f"train.batch_size={self.batch_size} must be divisible by mesh.data x mesh.fsdp={shards} times "
            f"train.accumulate={self.accumulate}. Use "
            f"{multiples_near(unit, self.batch_size)}, with optim.lr to match.",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The config section `checkpoint`. `checkpoint.Checkpoints` explains its fields.

    `best` may be None, see `best_metric`.

    Raises:
        ConfigError: a number is below 1.
    """

    every_steps: int = 1000
    keep: int = 2
    best: str | None = None

    def __post_init__(self):
        require_types("checkpoint", vars(self), type(self))
        require(
            self.every_steps >= 1,
            f"checkpoint.every_steps={self.every_steps} must be at least 1, the steps from save to save.",
        )
        require(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1, or no run could continue.")

    def best_metric(self, labels: str = ONE) -> str:
        """Returns the metric by which the best checkpoint is chosen: `best`, or one that follows from data.labels."""
        default = "val/top1@1x1" if labels == ONE else "val/mAP@1x1"
        return default if self.best is None else self.best


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """The config section `own`.

    Args:
        minutes: the time in which a new run is to end, counted from the start of the command. The fields that the
            command line does not give are derived from it, see `training.own.derive`. None derives nothing.

    Raises:
        ConfigError: the number is not above 0.
    """

    minutes: float | None = None

    def __post_init__(self):
        require_types("own", vars(self), type(self))
        require(
            self.minutes is None or 0 < self.minutes < MAX_MINUTES,
            f"own.minutes={self.minutes} must be above 0 and below {MAX_MINUTES:,}.",
        )
