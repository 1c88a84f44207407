"""The training state and the one step that advances it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx

from vidformers.models.fuse import fuse_projections
from vidformers.training.mixing import Mixing
from vidformers.training.optim import frozen_mask
from vidformers.training.update_in_backward import value_and_update


class State(NamedTuple):
    """All that training carries from step to step. Randomness is a function of the seed and `step` alone."""

    step: jax.Array
    parameters: Any
    opt_state: Any
    ema: Any  # moving average of the parameters, or () without one

    @property
    def eval_parameters(self):
        """The parameters that evaluation uses."""
        return self.ema or self.parameters


def initial_state(make_model, optimizer, ema_decay, seed: int) -> State:
    parameters = nnx.to_pure_dict(nnx.state(make_model(rngs=nnx.Rngs(seed))))
    ema = jax.tree.map(jnp.copy, parameters) if ema_decay else ()
    return State(jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters), ema)


def make_step(
    graph,
    optimizer,
    rate,
    *,
    seed: int,
    accumulate: int = 1,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    frozen: tuple = (),
    in_backward: bool = False,
    mixing: Mixing | None = None,
):
    """(state, batch {video b t y x c, index b t, label b, mask b}) -> (state, metrics), for jit with the state donated.

    Of several processes, a batch has `stop` (b) too, 1 from one that was asked to, and the metrics say if any was.

    The loss is the cross-entropy of the rows of mask 1, averaged over the whole batch whatever `accumulate`, the
    number of micro-batches whose gradients are summed before the one update. Clips are mixed inside their micro-batch;
    a mixed clip has no one class, so that `mixing` leaves no top-1 among the metrics. `in_backward` updates the layers
    of each stage within the backward pass, which goes with neither `accumulate` nor `frozen`.
    """

    def loss_sum(model, batch, key):
        mask = batch["mask"]
        # Blank before the model, not after: even a NaN in a masked row must reach neither the loss nor a gradient.
        video = jnp.where(mask[:, None, None, None, None] > 0, batch["video"], 0)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], model.num_classes), label_smoothing)
        if mixing is not None:
            key, own = jax.random.split(key)
            video, targets = mixing(video, targets, mask, own)
        logits = model(video, key, batch.get("index"))
        losses = optax.softmax_cross_entropy(logits, targets)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return (losses * mask).sum(), (correct * mask).sum()

    def gradient(parameters, batch, key):
        def loss(parameters):
            held = frozen_mask(parameters, frozen)
            parameters = jax.tree.map(lambda x, hold: jax.lax.stop_gradient(x) if hold else x, parameters, held)
            return loss_sum(fuse_projections(nnx.merge(graph, parameters)), batch, key)

        (loss, correct), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return loss, correct, gradients

    def update_after(state, batch, count, key):
        """(loss, correct, norm of the gradient, new parameters, new opt_state): all of the gradient, then the update."""
        if accumulate == 1:
            sums = gradient(state.parameters, batch, key)
        else:
            # Every accumulate-th row forms a micro-batch, so that each device keeps its own rows.
            micro = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=accumulate), batch)
            keys = jax.random.split(key, accumulate)
            zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.parameters))
            sums, _ = jax.lax.scan(
                lambda sums, xs: (jax.tree.map(jnp.add, sums, gradient(state.parameters, *xs)), None),
                zero,
                (micro, keys),
            )
        loss, correct, gradients = jax.tree.map(lambda x: x / jnp.maximum(count, 1), sums)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.parameters)
        return loss, correct, optax.tree.norm(gradients), optax.apply_updates(state.parameters, updates), opt_state

    def update_within(state, batch, count, key):
        """The same, layer by layer within the backward pass."""

        def loss(model):
            return jax.tree.map(lambda x: x / jnp.maximum(count, 1), loss_sum(model, batch, key))

        return value_and_update(loss, graph, optimizer, state.parameters, state.opt_state)

    def step(state: State, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        update = update_within if in_backward else update_after
        count = batch["mask"].sum()
        loss, correct, norm, parameters, opt_state = update(state, batch, count, key)
        ema = state.ema
        if ema_decay:
            ema = optax.incremental_update(parameters, ema, 1 - ema_decay)
        metrics = {"loss": loss, "count": count, "gradient_norm": norm, "lr": rate(state.step)}
        if mixing is None:
            metrics["top1"] = correct
        if "stop" in batch:
            metrics["stop"] = batch["stop"].max()
        return State(state.step + 1, parameters, opt_state, ema), metrics

    return step
