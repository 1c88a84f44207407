"""Optimisers, schedules, and the one conversion of durations to steps."""

import jax
import optax

from vidformers.errors import ConfigError, require


def duration_in_steps(field: str, steps, epochs, steps_per_epoch: float) -> int | None:
    """A duration given as `{field}_steps` or `{field}_epochs`, in steps; None where neither is.

    Raises ConfigError where both are given, or the one given is negative.
    """
    if steps is not None and epochs is not None:
        raise ConfigError(f"{field}_steps={steps} and {field}_epochs={epochs} are both set; give one.")
    if steps is None and epochs is None:
        return None
    value = steps if epochs is None else round(epochs * steps_per_epoch)
    require(value >= 0, f"{field}_{'steps' if epochs is None else 'epochs'} must be at least 0.")
    return int(value)


def decay_mask(parameters, which: str):
    """True where weight decay applies: 'kernels' spares biases, norms, tokens and position tables; 'all' nothing."""
    return jax.tree_util.tree_map_with_path(lambda path, _: which == "all" or path[-1].key == "kernel", parameters)


def frozen_mask(parameters, names: tuple):
    """True where a parameter belongs to one of the modules `names`, given as they stand in the model ('encoder')."""

    def frozen(path, _):
        return path[0].key in names

    return jax.tree_util.tree_map_with_path(frozen, parameters)


def make_optimizer(
    total_steps: int,
    steps_per_epoch: float,
    *,
    name: str = "adamw",
    lr: float = 2.5e-4,
    weight_decay: float = 0.05,
    decay: str = "kernels",
    b1: float = 0.9,
    b2: float = 0.999,
    momentum: float = 0.9,
    nesterov: bool = False,
    schedule: str = "cosine",
    warmup_steps: int | None = None,
    warmup_epochs: float | None = None,
    drop_epochs: tuple = (),
    drop_factor: float = 0.1,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    frozen: tuple = (),
    in_backward: bool = False,
):
    """(optax transformation, schedule) of the section `optim`.

    Args:
        name: 'adamw' (b1, b2, decoupled decay) or 'sgd' (momentum, decay added to the gradient).
        schedule: 'cosine' to 0, 'step' (times `drop_factor` at each of `drop_epochs`) or 'constant', after a linear
            warm-up from 0.
        clip_norm: largest norm of the whole gradient.
        ema_decay: read by the training step, which keeps the moving average.
        frozen: modules of the model that keep their parameters, as 'encoder' under a readout; no gradient is computed.
        in_backward: read by the training step, which updates each layer as soon as its gradient is known and never
            holds the whole gradient; goes with model.remat=full and without clip_norm, frozen and train.accumulate.
    Raises:
        ConfigError: an unknown name or a number out of range.
    """
    require(name in ("adamw", "sgd"), f"optim.name={name!r} must be adamw or sgd.")
    require(decay in ("kernels", "all"), f"optim.decay={decay!r} must be kernels or all.")
    require(lr > 0, f"optim.lr={lr} must be positive.")
    require(weight_decay >= 0, f"optim.weight_decay={weight_decay} must be at least 0.")
    for field, value in (("b1", b1), ("b2", b2), ("momentum", momentum)):
        require(0 <= value < 1, f"optim.{field}={value} must be at least 0 and below 1.")
    require(drop_factor > 0, f"optim.drop_factor={drop_factor} must be positive.")
    require(
        all(isinstance(epoch, (int, float)) for epoch in drop_epochs),
        f"optim.drop_epochs={drop_epochs} must be numbers of epochs.",
    )
    require(clip_norm is None or clip_norm > 0, f"optim.clip_norm={clip_norm} must be positive.")
    require(ema_decay is None or 0 < ema_decay < 1, f"optim.ema_decay={ema_decay} must be between 0 and 1.")
    require(
        not in_backward or clip_norm is None and not frozen,
        "optim.in_backward=true updates a layer before the gradient of others is known, which neither "
        "optim.clip_norm nor optim.frozen goes with.",
    )
    warmup = duration_in_steps("optim.warmup", warmup_steps, warmup_epochs, steps_per_epoch) or 0
    require(warmup < total_steps, f"The warm-up of {warmup} steps does not end within the {total_steps} steps.")
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, total_steps - warmup)
    elif schedule == "step":
        drops = {max(round(epoch * steps_per_epoch) - warmup, 0): drop_factor for epoch in drop_epochs}
        after = optax.piecewise_constant_schedule(lr, drops)
    else:
        require(schedule == "constant", f"optim.schedule={schedule!r} must be cosine, step or constant.")
        after = optax.constant_schedule(lr)
    rate = optax.join_schedules([optax.linear_schedule(0.0, lr, max(warmup, 1)), after], [warmup])

    def mask(parameters):
        return decay_mask(parameters, decay)

    # One link without clipping too: a run may continue with or without it.
    steps = [optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)]
    if name == "adamw":
        steps += [optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)]
    else:
        steps += [optax.add_decayed_weights(weight_decay, mask), optax.sgd(rate, momentum, nesterov)]
    if frozen:
        steps += [optax.masked(optax.set_to_zero(), lambda parameters: frozen_mask(parameters, frozen))]
    return optax.chain(*steps), rate
