"""Optimizers, learning-rate schedules, and the conversion of durations to steps."""

from dataclasses import dataclass

import jax
import optax

from vidformers.errors import ConfigError, require, require_types


def duration_in_steps(field: str, steps, epochs, steps_per_epoch: float) -> int | None:
    """Returns a duration in steps, given as `{field}_steps` or `{field}_epochs`, or None if neither is given.

    Raises:
        ConfigError: both are given, or the one that is given is negative.
    """
    if steps is not None and epochs is not None:
        raise ConfigError(f"{field}_steps={steps} and {field}_epochs={epochs} are both set. Set one of them to none.")
    if steps is None and epochs is None:
        return None
    value = steps if epochs is None else round(epochs * steps_per_epoch)
    unit = "steps" if epochs is None else "epochs"
    require(0 <= value < 2**31, f"{field}_{unit} must come to at least 0 and at most 2,147,483,647 steps.")
    return int(value)


def decay_mask(parameters, which: str):
    """Returns a tree of bools that is True where weight decay applies.

    `which='kernels'` excludes biases, norms, tokens and position tables. `which='all'` excludes nothing.
    `which='all_but_batch_norm'` excludes the scale and the bias that take the place of a batch normalisation, see
    `layers.convolution.Convolution`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    convolutions = {path[: keys.index("convolution")] for path, _ in leaves if "convolution" in (keys := _keys(path))}

    def decays(path, _) -> bool:
        # The path of one of several arrays ends with its number.
        name = [key for key in _keys(path) if isinstance(key, str)][-1]
        if which == "all_but_batch_norm":
            return not (name in ("scale", "bias") and path[: _keys(path).index(name)] in convolutions)
        return which == "all" or name == "kernel"

    return jax.tree_util.tree_map_with_path(decays, parameters)


def _keys(path) -> list:
    """Returns the keys of a path of dictionaries, and None for the position of an array in a list."""
    return [entry.key if isinstance(entry, jax.tree_util.DictKey) else None for entry in path]


def frozen_mask(parameters, names: tuple):
    """Returns a tree of bools that is True for the parameters of the top-level modules `names`, such as 'encoder'."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key in names, parameters)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The config section `optim`.

    Args:
        name: 'adamw' (`b1`, `b2`, decoupled weight decay) or 'sgd' (`momentum`, weight decay added to the gradient).
        lr: the learning rate after the warm-up.
        weight_decay: the factor of the weight decay.
        decay: which parameters decay, 'kernels', 'all' or 'all_but_batch_norm'; see `decay_mask`.
        b1, b2: decay rates of Adam's moment estimates.
        momentum, nesterov: the momentum of SGD.
        schedule: 'cosine' (to `end_lr` at the last step), 'step' (multiplied by `drop_factor` at each of `drop_epochs`)
            or 'constant', each after a linear warm-up from `start_lr`.
        start_lr, end_lr: learning rates at the start of the warm-up and at the end of a cosine, at most `lr`.
        warmup_steps, warmup_epochs: the length of the warm-up; give at most one.
        clip_norm: the largest norm of the whole gradient; None does not clip.
        ema_decay: the decay of the parameters' EMA, which the training step updates; None keeps no EMA.
        frozen: top-level modules whose parameters do not change, for example 'encoder' to train only a readout. Their
            gradient is not computed.
        in_backward: updates each layer in the backward pass as soon as its gradient is known, so that the whole
            gradient is never materialised. Needs model.remat=full and train.accumulate=1. Cannot be combined with
            `clip_norm` or `frozen`.
        layer_decay: the factor of the learning rate from a layer to the one before, from the head down to the
            embedding, see `layer_decay`. 1 trains all layers with the same rate.

    Raises:
        ConfigError: an unknown name or a number out of range.
    """

    name: str = "adamw"
    lr: float = 2.5e-4
    weight_decay: float = 0.05
    decay: str = "kernels"
    b1: float = 0.9
    b2: float = 0.999
    momentum: float = 0.9
    nesterov: bool = False
    schedule: str = "cosine"
    start_lr: float = 0.0
    end_lr: float = 0.0
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    drop_epochs: tuple[float, ...] = ()
    drop_factor: float = 0.1
    clip_norm: float | None = None
    ema_decay: float | None = None
    frozen: tuple[str, ...] = ()
    in_backward: bool = False
    layer_decay: float = 1.0

    def __post_init__(self):
        require_types("optim", vars(self), type(self))
        require(self.name in ("adamw", "sgd"), f"optim.name={self.name!r} must be adamw or sgd.")
        require(
            self.decay in ("kernels", "all", "all_but_batch_norm"),
            f"optim.decay={self.decay!r} must be kernels, all or all_but_batch_norm.",
        )
        require(
            self.schedule in ("cosine", "step", "constant"),
            f"optim.schedule={self.schedule!r} must be cosine, step or constant.",
        )
        require(self.lr > 0, f"optim.lr={self.lr} must be positive.")
        for field in ("start_lr", "end_lr"):
            value = getattr(self, field)
            require(0 <= value <= self.lr, f"optim.{field}={value} must be between 0 and optim.lr={self.lr}.")
        require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay} must be at least 0.")
        for field in ("b1", "b2", "momentum"):
            value = getattr(self, field)
            require(0 <= value < 1, f"optim.{field}={value} must be at least 0 and below 1.")
        require(self.drop_factor > 0, f"optim.drop_factor={self.drop_factor} must be positive.")
        require(
            all(epoch > 0 for epoch in self.drop_epochs),
            f"optim.drop_epochs={self.drop_epochs} must be numbers of epochs above 0.",
        )
        for field in ("warmup_steps", "warmup_epochs"):
            value = getattr(self, field)
            require(value is None or value >= 0, f"optim.{field}={value} must be at least 0.")
        require(self.clip_norm is None or self.clip_norm > 0, f"optim.clip_norm={self.clip_norm} must be positive.")
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optim.ema_decay={self.ema_decay} must be between 0 and 1.",
        )
        require(
            0 < self.layer_decay <= 1,
            f"optim.layer_decay={self.layer_decay} must be above 0 and at most 1, where all layers have one rate.",
        )
        require(
            not self.in_backward or self.clip_norm is None and not self.frozen,
            "optim.in_backward=true updates a layer before the gradients of other layers are known. Set "
            "optim.clip_norm=none and optim.frozen=().",
        )


def make_optimizer(total_steps: int, steps_per_epoch: float, **section):
    """Returns (optax transformation, schedule: step -> learning rate).

    Args:
        total_steps: the length of the run.
        steps_per_epoch: converts the fields that are given in epochs.
        **section: the fields of `OptimConfig`.

    Raises:
        ConfigError: `OptimConfig` refuses a field, or the warm-up is not shorter than the run.
    """
    config = OptimConfig(**section)
    schedule = _make_schedule(config, total_steps, steps_per_epoch)
    return _make_transformation(config, schedule), schedule


def _shorter_warmup(config: OptimConfig, total_steps: int, steps_per_epoch: float) -> str:
    """Returns the field of the warm-up with a tenth of the run, in the unit in which it was given."""
    if config.warmup_epochs is None:
        return f"optim.warmup_steps={total_steps // 10}"
    return f"optim.warmup_epochs={total_steps // 10 / steps_per_epoch:.3g}"


def _make_schedule(config: OptimConfig, total_steps: int, steps_per_epoch: float):
    warmup = duration_in_steps("optim.warmup", config.warmup_steps, config.warmup_epochs, steps_per_epoch) or 0
    require(
        warmup < total_steps,
        f"The warm-up of {warmup} steps (optim.warmup_steps or optim.warmup_epochs) must be shorter than the run of "
        f"{total_steps} steps. Set {_shorter_warmup(config, total_steps, steps_per_epoch)}, a tenth of the run.",
    )
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.lr, total_steps - warmup, config.end_lr / config.lr)
    elif config.schedule == "step":
        # Epochs count from the start of the run, the steps of a joined schedule from the end of the warm-up.
        drops = {max(round(epoch * steps_per_epoch) - warmup, 0): config.drop_factor for epoch in config.drop_epochs}
        after = optax.piecewise_constant_schedule(config.lr, drops)
    else:
        after = optax.constant_schedule(config.lr)
    return optax.join_schedules([optax.linear_schedule(config.start_lr, config.lr, max(warmup, 1)), after], [warmup])


def _make_transformation(config: OptimConfig, schedule):
    def mask(parameters):
        return decay_mask(parameters, config.decay)

    # Keep the length of the chain, with an identity in place of clipping: the tree of the optimizer state is then the
    # same, and a run can be resumed with or without clipping.
    chain = [optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)]
    if config.name == "adamw":
        chain += [optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask)]
    else:
        chain += [
            optax.add_decayed_weights(config.weight_decay, mask),
            optax.sgd(schedule, config.momentum, config.nesterov),
        ]
    if config.frozen:
        chain += [optax.masked(optax.set_to_zero(), lambda parameters: frozen_mask(parameters, config.frozen))]
    return optax.chain(*chain)
