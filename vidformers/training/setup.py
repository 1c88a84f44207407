"""Checks the sections of a config, and compiles the training step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipeline import Pipeline
from input_pipeline.balance import class_counts, class_weights
from input_pipeline.prefetch import require_memory
from input_pipeline.remarks import check_evaluated_data, check_training_data, class_remarks, layout_remarks
from vidformers.errors import ConfigError, require
from vidformers.models.encoder import Stage
from vidformers.models.registry import build
from vidformers.parallel import memory
from vidformers.parallel.batch import abstract_batch
from vidformers.parallel.mesh import make_mesh, num_batch_shards, with_mesh
from vidformers.parallel.state import replicated_sharding, unstack_layers, with_shardings
from vidformers.parallel.target import traced_for
from vidformers.pretrained import Init, Pretrained, load
from vidformers.training.checks import check_context, check_frozen, check_in_backward, checked_best
from vidformers.training.config import TrainConfig
from vidformers.training.evaluate import EvalProtocol, Evaluator
from vidformers.training.loss import Loss
from vidformers.training.optim import OptimConfig, duration_in_steps, make_optimizer
from vidformers.training.patience import check_patience
from vidformers.training.run_weights import open_run
from vidformers.training.scoring import MultiLabel, SingleLabel, scoring_of
from vidformers.training.sections import check_sections
from vidformers.training.step import State, initial_state, make_step


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The setup of a run, without arrays: its checked config, its data, and the shapes and shardings of its state.

    Attributes:
        config: the config as nested dicts, with the values of fields that follow other fields.
        train_config, protocol, optim, init: its sections `train`, `eval`, `optim` and `init`. `protocol` is that of
            the final evaluation and of `--mode=eval`.
        pipeline: the data pipeline, from its section `data`.
        loss: the loss of a clip.
        make_model: rngs -> the model.
        graph: the graph definition of the model.
        optimizer: the optax transformation.
        schedule: step -> learning rate.
        abstract: the shapes and shardings of the training state, with stacked layers, as checkpoints hold it.
        total_steps: the length of the run.
        eval_every: steps between two periodic evaluations, or None.
        remarks: sentences for the user about the data, see `input_pipeline.remarks`.
    """

    config: dict
    train_config: TrainConfig
    protocol: EvalProtocol
    optim: OptimConfig
    init: Init
    pipeline: Pipeline
    loss: Loss
    mesh: jax.sharding.Mesh
    make_model: partial
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: Callable
    abstract: State
    total_steps: int
    eval_every: int | None
    remarks: tuple[str, ...] = ()

    @property
    def shardings(self) -> State:
        """The shardings of the training state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def step_abstract(self) -> State:
        """The shapes and shardings of the training state as the training step takes it.

        Layers are separate arrays where a loop runs them (`parallel.state`).
        """
        return self.abstract if self.optim.in_backward else step_state(self.graph, self.abstract, self.mesh)

    @property
    def periodic_protocol(self) -> EvalProtocol:
        """The protocol of periodic evaluations: one centre view."""
        return replace(self.protocol, clips=1, crops=1)

    @property
    def scoring(self) -> SingleLabel | MultiLabel:
        """How videos are scored."""
        return scoring_of(self.pipeline.labels, self.protocol.threshold)

    def evaluator(self, protocol: EvalProtocol) -> Evaluator:
        """Returns the evaluator of a protocol.

        Raises:
            ConfigError: the shapes of the parameters depend on the number of frames, and `protocol.frames` differs from
                data.frames; or the protocol cannot be divided among the devices.
        """
        graph = self.graph
        if protocol.frames is not None:
            model = nnx.eval_shape(lambda: self.make_model(rngs=nnx.Rngs(0), frames=protocol.frames))
            graph, state = nnx.split(model)
            shapes, trained = (
                jax.tree.map(jnp.shape, tree) for tree in (nnx.to_pure_dict(state), self.abstract.parameters)
            )
            require(
                shapes == trained,
                f"eval.frames={protocol.frames} changes the shapes of parameters, which were trained with data.frames="
                f"{self.config['data']['frames']}. For this model, set eval.frames=none.",
            )
        return Evaluator(graph, self.mesh, self.shardings.eval_parameters, protocol, self.scoring)


def abstract_state(make_model, optimizer, ema_decay: float | None, mesh):
    """Returns the graph definition of the model, and the training state as shapes, dtypes and shardings."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    shapes = jax.eval_shape(partial(initial_state, make_model, optimizer, ema_decay, 0))
    return graph, with_shardings(mesh, shapes)


def step_state(graph: nnx.GraphDef, abstract: State, mesh) -> State:
    """Returns the shapes and shardings of a training state as the training step takes it, of those with stacked layers.

    Layers are separate arrays where a loop runs them (`parallel.state`).
    """
    model = nnx.merge(graph, abstract.parameters)
    with traced_for(mesh.devices.flat[0].platform):
        is_loop = all(module.is_loop for _, module in nnx.iter_modules(model) if isinstance(module, Stage))
    return with_shardings(mesh, jax.eval_shape(unstack_layers, abstract)) if is_loop else abstract


def set_up(
    config: dict,
    training: bool = True,
    *,
    part: str = "val",
    lists: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
    clips_per_epoch: int | None = None,
) -> Setup:
    """Reads the manifests and checks every field. Compiles and writes nothing.

    Args:
        config: the config as nested dicts.
        training: False for evaluation only. Then the training videos may be missing, and durations are ignored, since
            the length of an epoch is unknown.
        part: the part of the data that is evaluated without training, 'train', 'val' or 'test'.
        lists: fields of the section `data` in place of those of the config, see `training.split`.
        devices: the devices of the mesh, by default all devices of all processes. Described devices
            (`parallel.topology`) suffice to compile.
        clips_per_epoch: the length of an epoch. If it is given, no manifest is read, so the data need not exist.

    Raises:
        ConfigError, DataError: an invalid config field or data file.
    """
    sections = check_sections(config)
    config = config | {"data": {name: getattr(sections.data, name) for name in config["data"]}}  # defaults for None
    pipeline, train_config, protocol = replace(sections.data, **lists or {}), sections.train, sections.eval
    remarks = [] if clips_per_epoch else _check_data(pipeline, train_config, protocol, None if training else part)
    loss = _loss(pipeline, train_config, reads_data=training and clips_per_epoch is None)
    mesh = make_mesh(**config["mesh"], devices=devices)
    if training:
        train_config.check_devices(num_batch_shards(mesh))
    check_context(config, mesh)
    optim = config["optim"]
    if not training:
        train_config = replace(
            train_config, total_steps=1, total_epochs=None, eval_every_steps=None, eval_every_epochs=None, patience=None
        )
        optim = optim | dict(warmup_steps=None, warmup_epochs=None)
    batch_size, repeats = train_config.batch_size, pipeline.repeats
    if clips_per_epoch is None:
        clips_per_epoch = repeats * len(pipeline.train_manifest.records) if training else batch_size
    steps_per_epoch = clips_per_epoch / batch_size
    train_config.check_repeats(repeats)
    total_steps, eval_every = _durations(train_config, steps_per_epoch)
    config = config | {"checkpoint": config["checkpoint"] | {"best": checked_best(sections)}}
    check_patience(train_config.patience, config["checkpoint"]["best"], eval_every, total_steps)
    optimizer, schedule = make_optimizer(total_steps, steps_per_epoch, **optim)
    optim_config = OptimConfig(**optim)
    check_in_backward(config, train_config, optim_config)
    make_model = partial(build, **config["model"])
    graph, abstract = abstract_state(make_model, optimizer, optim_config.ema_decay, mesh)
    check_frozen(optim_config, abstract.parameters)
    setup = Setup(
        config=config, train_config=train_config, protocol=protocol, optim=optim_config, init=sections.init,
        pipeline=pipeline, loss=loss, mesh=mesh, make_model=make_model, graph=graph, optimizer=optimizer,
        schedule=schedule, abstract=abstract, total_steps=total_steps, eval_every=eval_every, remarks=tuple(remarks),
    )  # fmt: skip
    setup.evaluator(protocol)  # refuses an eval.batch_size that cannot be divided among the devices
    return setup


def _check_data(pipeline: Pipeline, config: TrainConfig, protocol: EvalProtocol, part: str | None) -> list[str]:
    """Reads the manifests, so that mistakes in them are reported now, and returns remarks on the data.

    Args:
        part: the part that is evaluated without training, or None before a training.
    """
    _ = pipeline.manifest(part or "val"), pipeline.flip_map
    if protocol.batch_size is not None:  # otherwise the evaluation takes one that fits
        views = protocol.batch_size // jax.process_count() * protocol.clips * protocol.crops
        view_bytes = (protocol.frames or pipeline.frames) * pipeline.size**2 * 3
        require_memory(views * view_bytes, pipeline.workers, pipeline.prefetch, "eval.batch_size")
    skips_bad = protocol.on_bad == "skip"
    if part is None:
        return [
            *layout_remarks(pipeline),
            *check_training_data(pipeline, config.batch_size, skips_bad),
            *class_remarks(pipeline),
        ]
    check_evaluated_data(pipeline, skips_bad, part)
    return []


def _loss(pipeline: Pipeline, config: TrainConfig, reads_data: bool) -> Loss:
    """Returns the loss. Its class weights are all 1 unless the data are read."""
    weights = None
    if config.class_weights:
        counts = np.ones(pipeline.num_classes, int)
        if reads_data:
            counts = class_counts(pipeline.train_manifest.records, pipeline.num_classes)
        weights = class_weights(counts, config.class_weights)
    return Loss(config.label_smoothing, weights, several_labels=pipeline.multi_hot is not None)


def _durations(config: TrainConfig, steps_per_epoch: float) -> tuple[int, int | None]:
    """Returns the length of the run and the interval of periodic evaluations, in steps."""
    total = duration_in_steps("train.total", config.total_steps, config.total_epochs, steps_per_epoch)
    epoch = f"A step is {1 / max(steps_per_epoch, 1e-9):.2g} epochs."
    require(
        total is not None and total >= 1,
        f"train.total_steps or train.total_epochs must be set, to 1 step or more. {epoch}",
    )
    eval_every = duration_in_steps(
        "train.eval_every", config.eval_every_steps, config.eval_every_epochs, steps_per_epoch
    )
    require(
        eval_every is None or eval_every >= 1,
        f"train.eval_every_steps or train.eval_every_epochs must come to 1 step or more. {epoch}",
    )
    return total, eval_every


def load_weights(setup: Setup) -> Pretrained | None:
    """Returns the pretrained weights that `init.weights` names, fitted to the model, or None if it names none.

    Raises:
        ConfigError: the weights cannot be read or do not fit the model.
    """
    if setup.init.weights is None:
        return None
    file = open_run(str(setup.init.weights))
    return load(setup.init, setup.make_model, setup.pipeline.val_manifest.classes, file)


def initialise(setup: Setup, pretrained: Pretrained | None = None) -> State:
    """Returns the state before the first step. Each device creates its own shards."""
    init = partial(initial_state, setup.make_model, setup.optimizer, setup.optim.ema_decay, setup.config["seed"])
    state = jax.jit(init, out_shardings=setup.shardings)()
    if pretrained is None:
        return state
    ema = pretrained.place_into(state.ema) if state.ema else state.ema
    return state._replace(parameters=pretrained.place_into(state.parameters), ema=ema)


def compile_step(setup: Setup, **changes):
    """Returns the training step, compiled for the mesh of the run. The arguments are those of `trace_training_step`."""
    return trace_training_step(setup, **changes).lower().compile()


def trace_training_step(setup: Setup, **changes) -> jax.stages.Traced:
    """Returns the training step, traced for the mesh of the run.

    Args:
        **changes: values that replace those of the config: fields of the model, `accumulate` or `in_backward`.
    """
    config = setup.train_config
    accumulate = changes.pop("accumulate", config.accumulate)
    in_backward = changes.pop("in_backward", setup.optim.in_backward)
    graph = setup.graph
    if changes:
        make_model = partial(setup.make_model, **changes)
        graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    step = make_step(
        graph,
        setup.optimizer,
        setup.schedule,
        seed=setup.config["seed"],
        accumulate=accumulate,
        loss=setup.loss,
        ema_decay=setup.optim.ema_decay,
        frozen=setup.optim.frozen,
        in_backward=in_backward,
        layer_decay=setup.optim.layer_decay,
        mixing=config.mixing,
    )
    data = setup.config["data"]
    video = (config.batch_size, data["frames"], data["size"], data["size"], 3)
    batch = abstract_batch(setup.mesh, video, stop=jax.process_count() > 1, multi_hot=setup.pipeline.multi_hot)
    return trace_step(step, setup.mesh, setup.step_abstract, batch)


def trace_step(step, mesh, abstract: State, batch: dict) -> jax.stages.Traced:
    """Returns `step` traced for a mesh. State and batch are trees of `jax.ShapeDtypeStruct` with shardings."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    jitted = jax.jit(with_mesh(mesh, step), donate_argnums=0, out_shardings=(shardings, replicated_sharding(mesh)))
    return jitted.trace(abstract, batch)


def compile_within_memory(setup: Setup, limit: float | None = None):
    """Returns the compiled training step if it fits in device memory.

    Args:
        limit: the memory of a device in bytes; None asks the device.

    Raises:
        ConfigError: the step does not fit. The message names a setting with which it fits, if there is one.
    """
    limit = memory.bytes_available() if limit is None else limit
    compiled, needed = memory.compile_within(limit, lambda: compile_step(setup))
    if compiled is not None:
        return compiled
    raise ConfigError(memory.out_of_memory_message(limit, needed, _smaller_settings(setup)))


def _smaller_settings(setup: Setup) -> Iterator[tuple[str, int]]:
    """Yields (settings that need less memory, bytes of the step with them). The settings that cost least come first."""
    clips_per_shard = setup.train_config.batch_size // num_batch_shards(setup.mesh)
    for changes in smaller_settings(setup.train_config, setup.optim, clips_per_shard):
        values = {name.partition(".")[2]: value for name, value in changes.items()}
        try:
            yield settings_text(changes), memory.program_bytes(compile_step(setup, **values))
        except jax.errors.JaxRuntimeError:
            continue


def smaller_settings(config: TrainConfig, optim: OptimConfig, clips_per_shard: int) -> Iterator[dict[str, Any]]:
    """Yields fields of the config, with their values, that need less memory. Those that cost least come first.

    Args:
        config, optim: the sections `train` and `optim`.
        clips_per_shard: clips of a step on each shard of the batch axis.
    """
    if optim.in_backward:
        return
    remat: dict[str, Any] = {"model.remat": "full"}
    yield remat
    if config.accumulate == 1 and optim.clip_norm is None and not optim.frozen:
        yield remat | {"optim.in_backward": True}
    for count in (2 * config.accumulate, 4 * config.accumulate, clips_per_shard):
        is_mixable = config.mixing is None or config.batch_size >= 2 * count
        if clips_per_shard % count == 0 and count > config.accumulate and is_mixable:
            yield remat | {"train.accumulate": count}


def settings_text(changes: dict[str, Any]) -> str:
    """Returns fields of the config with their values in words: 'model.remat=full and optim.in_backward=true'."""
    return " and ".join(f"{name}={str(value).lower()}" for name, value in changes.items())
