"""The training state and the training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx

from vidformers.models.fuse import fuse_projections
from vidformers.parallel.state import stack_layers
from vidformers.training.layer_decay import learning_rate_scales
from vidformers.training.loss import Loss
from vidformers.training.mixing import Mixing
from vidformers.training.optim import frozen_mask
from vidformers.training.update_in_backward import value_and_update


class State(NamedTuple):
    """The arrays that training carries from step to step. All randomness derives from the seed and `step`."""

    step: jax.Array
    parameters: Any
    opt_state: Any
    ema: Any  # exponential moving average of the parameters, or () without one

    @property
    def eval_parameters(self):
        """The parameters that evaluation uses."""
        return self.ema or self.parameters


def initial_state(make_model, optimizer, ema_decay, seed: int) -> State:
    """Returns the state before the first step, with the parameters that `make_model` draws from `seed`."""
    parameters = nnx.to_pure_dict(nnx.state(make_model(rngs=nnx.Rngs(seed))))
    # A copy, since the training step donates the state: two of its arrays must not share a buffer.
    ema = jax.tree.map(jnp.copy, parameters) if ema_decay else ()
    return State(jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters), ema)


def make_step(graph, optimizer, schedule, **options):
    """Returns the training step (state, batch) -> (state, metrics), to be jitted with the state donated.

    The batch is {video (b t y x c), index (b t), label (b), mask (b)}. `index` holds the indices of the frames in the
    source video. With several labels a clip, `label` is (b n). In a run of several processes the batch also holds
    `stop` (b), which is 1 in the rows of a process that was asked to stop. Then metrics['stop'] is 1 if any process was
    asked to stop, 0 otherwise.

    The loss of the step is that of its clips, averaged over the rows of the whole batch that have mask 1.

    Args:
        graph: the graph definition of the model.
        optimizer: the optax transformation.
        schedule: step -> learning rate, for the metrics.
        **options: the other fields of `_Step`. Only `seed` is required.
    """
    return _Step(graph, optimizer, schedule, **options).step


@dataclass(frozen=True, eq=False)  # eq=False: hashed by identity, since jax.jit hashes the bound method `step`
class _Step:
    """The training step with its options.

    Args:
        seed: seeds dropout, stochastic depth and mixing, together with the number of the step.
        accumulate: the number of micro-batches. Their gradients are summed before the update, so the number does not
            change the loss.
        loss: the loss of a clip. With several labels a clip has no single class, so the metrics hold no top-1.
        ema_decay: the decay of the EMA of the parameters, or None.
        frozen: the top-level modules whose gradient is not computed.
        in_backward: updates the layers of each stage in the backward pass. Cannot be combined with `accumulate` or
            `frozen`.
        layer_decay: multiplies the learning rate of each layer, see `layer_decay.learning_rate_scales`. 1 has no
            effect.
        mixing: Mixup and CutMix, within each micro-batch. A mixed clip has no single class, so the metrics then hold
            no top-1.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: Callable
    seed: int
    accumulate: int = 1
    loss: Loss = Loss()
    ema_decay: float | None = None
    frozen: tuple = ()
    in_backward: bool = False
    mixing: Mixing | None = None
    layer_decay: float = 1.0

    def step(self, state: State, batch):
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        update = self.update_in_backward if self.in_backward else self.update_after_backward
        count = batch["mask"].sum()
        loss, accuracy, norm, parameters, opt_state = update(state, batch, count, key)
        ema = state.ema
        if self.ema_decay:
            ema = optax.incremental_update(parameters, ema, 1 - self.ema_decay)
        metrics = {"loss": loss, "count": count, "gradient_norm": norm, "lr": self.schedule(state.step)}
        if self.mixing is None and not self.loss.several_labels:
            metrics["top1"] = accuracy
        if "stop" in batch:
            metrics["stop"] = batch["stop"].max()
        return State(state.step + 1, parameters, opt_state, ema), metrics

    def update_after_backward(self, state: State, batch, count, key):
        """Returns (loss, accuracy, gradient norm, new parameters, new opt_state), updating with the whole gradient."""
        sums = self.accumulated_sums(state.parameters, batch, key)
        loss, accuracy, gradients = jax.tree.map(lambda x: x / jnp.maximum(count, 1), sums)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.parameters)
        if (scales := self.learning_rate_scales(state.parameters)) is not None:
            updates = jax.tree.map(jnp.multiply, updates, scales)
        return loss, accuracy, optax.tree.norm(gradients), optax.apply_updates(state.parameters, updates), opt_state

    def update_in_backward(self, state: State, batch, count, key):
        """Returns the same as `update_after_backward`, updating layer by layer in the backward pass."""

        def loss_fn(model):
            # Not fused: `fuse_projections` replaces two weight matrices by their product, and the backward pass must
            # update the original matrices.
            return jax.tree.map(lambda x: x / jnp.maximum(count, 1), self.loss_sums(model, batch, key))

        scales = self.learning_rate_scales(state.parameters)
        return value_and_update(loss_fn, self.graph, self.optimizer, state.parameters, state.opt_state, scales)

    def learning_rate_scales(self, parameters):
        """Returns the factors of the updates, or None if all are 1. Both optimizers scale with the learning rate."""
        return None if self.layer_decay == 1 else learning_rate_scales(parameters, self.layer_decay)

    def accumulated_sums(self, parameters, batch, key):
        """Returns (loss, correct predictions, gradient), each summed over the rows of all micro-batches."""
        if self.accumulate == 1:
            return self.sums_and_gradient(parameters, batch, key)
        # A micro-batch takes every accumulate-th row, so that no row moves to another device.
        micro = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=self.accumulate), batch)
        keys = jax.random.split(key, self.accumulate)
        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
        return jax.lax.scan(
            lambda sums, xs: (jax.tree.map(jnp.add, sums, self.sums_and_gradient(parameters, *xs)), None),
            zero,
            (micro, keys),
        )[0]

    def sums_and_gradient(self, parameters, batch, key):
        """Returns (loss, correct predictions, gradient), each summed over the rows of one micro-batch."""

        def loss_fn(parameters):
            is_frozen = frozen_mask(parameters, self.frozen)
            parameters = jax.tree.map(
                lambda x, frozen: jax.lax.stop_gradient(x) if frozen else x, parameters, is_frozen
            )
            # Fusing saves multiply-adds. Inside the differentiated function, it gives gradients of the unfused
            # parameters.
            model = fuse_projections(nnx.merge(self.graph, stack_layers(parameters)))
            return self.loss_sums(model, batch, key)

        (loss, correct), gradients = jax.value_and_grad(loss_fn, has_aux=True)(parameters)
        return loss, correct, gradients

    def loss_sums(self, model, batch, key):
        """Returns (loss, correct predictions), each summed over the rows that have mask 1."""
        mask = batch["mask"]
        # Zero the masked rows before the model: a NaN in their pixels must reach neither the loss nor a gradient.
        video = jnp.where(mask[:, None, None, None, None] > 0, batch["video"], 0)
        targets = self.loss.targets(batch["label"], model.num_classes)
        if self.mixing is not None:
            key, mixing_key = jax.random.split(key)
            video, targets = self.mixing(video, targets, mask, mixing_key)
        logits = model(video, key, batch.get("index"))
        losses = self.loss(logits, targets)
        if self.loss.several_labels:
            return (losses * mask).sum(), jnp.zeros(())
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return (losses * mask).sum(), (correct * mask).sum()
