"""What a run is made of before an array exists: the sections of its config, checked, and the compiled step."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from input_pipeline import Pipeline
from input_pipeline.augment import crop_places
from vidformers.errors import ConfigError, require
from vidformers.models.registry import WHOLE_CLIPS, build
from vidformers.parallel import memory
from vidformers.parallel.batch import abstract_batch
from vidformers.parallel.mesh import make_mesh, num_batch_shards, with_mesh
from vidformers.parallel.state import replicated_sharding, state_shardings
from vidformers.pretrained import Init, Pretrained, load
from vidformers.training.evaluate import EvalProtocol, Evaluator
from vidformers.training.mixing import Mixing
from vidformers.training.optim import duration_in_steps, make_optimizer
from vidformers.training.step import State, initial_state, make_step


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The section `train`.

    Args:
        total_steps, total_epochs: how long; give one.
        batch_size: clips an optimiser step, over all devices and micro-batches.
        accumulate: micro-batches a step.
        log_every_steps: steps between lines of figures.
        eval_every_steps, eval_every_epochs: between evaluations by one centre view; neither, none before the end.
        label_smoothing: share of the target spread over all classes.
        profile_steps: the first and the last of some steps that are traced for Perfetto and XProf; empty for none.
        mixup, cutmix, mix_probability, mix_switch: those of `mixing.Mixing`; without the first two clips stay apart.
    """

    total_steps: int | None = None
    total_epochs: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    log_every_steps: int = 50
    eval_every_steps: int | None = None
    eval_every_epochs: float | None = None
    label_smoothing: float = 0.0
    profile_steps: tuple = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5

    def __post_init__(self):
        for name in ("batch_size", "accumulate", "log_every_steps"):
            require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)} must be at least 1.")
        require(
            len(self.profile_steps) in (0, 2) and all(isinstance(step, int) for step in self.profile_steps),
            f"train.profile_steps={self.profile_steps} must be a first and a last step, such as (20,24).",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing={self.label_smoothing} must be at least 0 and below 1.",
        )
        require(
            self.mixing is None or self.batch_size >= 2 * self.accumulate,
            f"train.batch_size={self.batch_size} leaves clips without another to be mixed with: set train.mixup "
            "and train.cutmix to 0.",
        )

    @property
    def mixing(self) -> Mixing | None:
        mixing = Mixing(self.mixup, self.cutmix, self.mix_probability, self.mix_switch)
        return mixing if mixing.active else None

    def check_devices(self, parts: int) -> None:
        unit = parts * self.accumulate
        below = self.batch_size // unit * unit
        near = f"{below} or {below + unit}" if below else unit
        require(
            self.batch_size % unit == 0,
            f"train.batch_size={self.batch_size} must be divisible by mesh.data x mesh.fsdp={parts} parts x "
            f"train.accumulate={self.accumulate}: {near} would be, with optim.lr to match.",
        )


class Setup(NamedTuple):
    """Everything a run is made of before an array exists."""

    config: dict
    pipeline: Pipeline
    train_config: TrainConfig
    protocol: EvalProtocol
    mesh: jax.sharding.Mesh
    make_model: partial
    graph: nnx.GraphDef
    optimizer: object
    learning_rate: object
    abstract: State  # shapes and shardings of the training state
    total_steps: int
    eval_every: int | None
    init: Init

    @property
    def shardings(self):
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def quick_protocol(self) -> EvalProtocol:
        """One centre view: the evaluation on the way."""
        return replace(self.protocol, clips=1, crops=1)

    def evaluator(self, protocol: EvalProtocol) -> Evaluator:
        """Raises ConfigError where the protocol takes another number of frames than the parameters."""
        graph = self.graph
        if protocol.frames is not None:
            model = nnx.eval_shape(lambda: self.make_model(rngs=nnx.Rngs(0), frames=protocol.frames))
            graph, state = nnx.split(model)
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (nnx.to_pure_dict(state), self.abstract.parameters)]
            require(
                shapes[0] == shapes[1],
                f"eval.frames={protocol.frames} asks for other parameters than data.frames="
                f"{self.config['data']['frames']}: this model takes one number of frames.",
            )
        return Evaluator(graph, self.mesh, self.shardings.eval_parameters, protocol)


def abstract_state(make_model, optimizer, ema_decay: float | None, mesh):
    """The graph of the model, and the training state by shape, type and sharding."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    shapes = jax.eval_shape(partial(initial_state, make_model, optimizer, ema_decay, 0))
    return graph, jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def set_up(config: dict, training: bool = True) -> Setup:
    """Reads the data's lists and checks every field, before anything is compiled or written.

    For evaluation alone the training videos need not be there, and durations, counted in their epochs, mean nothing.

    Raises:
        ConfigError, DataError: a field or a file that cannot work.
    """
    require(config["seed"] >= 0, f"seed={config['seed']} must be at least 0.")
    pipeline = Pipeline(**config["data"])
    pipeline.val_manifest, pipeline.flip_map  # read here to be refused here
    loop, protocol = TrainConfig(**config["train"]), EvalProtocol(**config["eval"])
    mesh = make_mesh(**config["mesh"])
    if training:
        loop.check_devices(num_batch_shards(mesh))
    require(
        config["data"]["frames"] % mesh.shape["context"] == 0,
        f"data.frames={config['data']['frames']} must be divisible by mesh.context={mesh.shape['context']}.",
    )
    require(
        mesh.shape["context"] == 1 or config["model"]["name"] not in WHOLE_CLIPS,
        f"mesh.context={mesh.shape['context']} does not go with model.name={config['model']['name']}: XLA (jaxlib "
        "0.10) gets the gradient of its convolutions wrong where frames are spread; use mesh.fsdp.",
    )
    crop_places(protocol.crops)
    optim = config["optim"]
    if not training:
        loop = replace(loop, total_steps=1, total_epochs=None, eval_every_steps=None, eval_every_epochs=None)
        optim = optim | dict(warmup_steps=None, warmup_epochs=None)
    clips = pipeline.repeats * len(pipeline.train_manifest.records) if training else loop.batch_size
    per_epoch = clips / loop.batch_size
    require(
        loop.batch_size % pipeline.repeats == 0,
        f"train.batch_size={loop.batch_size} must be divisible by data.repeats={pipeline.repeats}.",
    )
    total = duration_in_steps("train.total", loop.total_steps, loop.total_epochs, per_epoch)
    require(total is not None and total >= 1, "train.total_steps or train.total_epochs must be set, to 1 step or more.")
    eval_every = duration_in_steps("train.eval_every", loop.eval_every_steps, loop.eval_every_epochs, per_epoch)
    require(eval_every is None or eval_every >= 1, "train.eval_every_steps or _epochs must come to 1 step or more.")
    known = [
        f"val/{score}@{shown.name}"
        for shown in (replace(protocol, clips=1, crops=1), protocol)
        for score in ("top1", "top5", "mean_class_top1")
    ]
    require(
        config["checkpoint"]["best"] in known,
        f"checkpoint.best={config['checkpoint']['best']} must be one of {', '.join(dict.fromkeys(known))}.",
    )
    optimizer, rate = make_optimizer(total, per_epoch, **optim)
    require(
        not optim["in_backward"] or loop.accumulate == 1 and config["model"]["remat"] == "full",
        "optim.in_backward=true keeps nothing of a layer but its input and updates after every batch: it needs "
        f"model.remat=full, not {config['model']['remat']}, and train.accumulate=1, not {loop.accumulate}.",
    )
    make_model = partial(build, **config["model"])
    graph, abstract = abstract_state(make_model, optimizer, optim["ema_decay"], mesh)
    for name in optim["frozen"]:
        require(
            name in abstract.parameters,
            f"optim.frozen={name!r} must name modules of the model: {', '.join(abstract.parameters)}.",
        )
    setup = Setup(
        config,
        pipeline,
        loop,
        protocol,
        mesh,
        make_model,
        graph,
        optimizer,
        rate,
        abstract,
        total,
        eval_every,
        Init(**config["init"]),
    )
    setup.evaluator(protocol)  # refuses an eval.batch_size that does not divide among the devices
    return setup


def load_weights(setup: Setup) -> Pretrained | None:
    """What `init` starts from, fitted to the model; None where it names nothing. Raises ConfigError."""
    if setup.init.weights is None:
        return None
    return load(setup.init, setup.make_model, setup.pipeline.val_manifest.classes)


def initialise(setup: Setup, pretrained: Pretrained | None = None) -> State:
    """The state of step 0, each array made where it lies."""
    init = partial(
        initial_state, setup.make_model, setup.optimizer, setup.config["optim"]["ema_decay"], setup.config["seed"]
    )
    state = jax.jit(init, out_shardings=setup.shardings)()
    if pretrained is None:
        return state
    ema = pretrained.place_into(state.ema) if state.ema else state.ema
    return state._replace(parameters=pretrained.place_into(state.parameters), ema=ema)


def compile_step(setup: Setup, **changes):
    """The training step, compiled ahead of time for this mesh; `changes` replace model fields, `accumulate` or
    `in_backward`."""
    optim = setup.config["optim"]
    accumulate = changes.pop("accumulate", setup.train_config.accumulate)
    in_backward = changes.pop("in_backward", optim["in_backward"])
    graph = setup.graph
    if changes:
        make_model = partial(setup.make_model, **changes)
        graph, _ = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    step = make_step(
        graph,
        setup.optimizer,
        setup.learning_rate,
        seed=setup.config["seed"],
        accumulate=accumulate,
        label_smoothing=setup.train_config.label_smoothing,
        ema_decay=optim["ema_decay"],
        frozen=optim["frozen"],
        in_backward=in_backward,
        mixing=setup.train_config.mixing,
    )
    data = setup.config["data"]
    video = (setup.train_config.batch_size, data["frames"], data["size"], data["size"], 3)
    batch = abstract_batch(setup.mesh, video, stop=jax.process_count() > 1)
    return lower_step(step, setup.mesh, setup.abstract, batch).compile()


def lower_step(step, mesh, abstract: State, batch: dict):
    """`step` lowered for a mesh, of a state and a batch that are given by shape, type and sharding."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    jitted = jax.jit(with_mesh(mesh, step), donate_argnums=0, out_shardings=(shardings, replicated_sharding(mesh)))
    return jitted.lower(abstract, batch)


def compile_within_memory(setup: Setup, limit: int | None = None):
    """`compile_step`, refused with what would fit where a device does not hold it.

    Raises:
        ConfigError: the step needs more than `limit` bytes a device, all of the device's memory by default.
    """
    limit = memory.bytes_available() if limit is None else limit
    have = None
    try:
        compiled = compile_step(setup)
        have = memory.program_bytes(compiled)
        if have <= limit:
            return compiled
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    raise ConfigError(memory.out_of_memory_message(limit, have, _smaller(setup)))


def _smaller(setup: Setup):
    """Ways to need less memory, mildest first, each with the bytes it would take."""
    accumulate, clips = setup.train_config.accumulate, setup.train_config.batch_size // num_batch_shards(setup.mesh)
    if setup.config["optim"]["in_backward"]:
        return
    changes = [("model.remat=full", dict(remat="full"))]
    if accumulate == 1 and setup.config["optim"]["clip_norm"] is None and not setup.config["optim"]["frozen"]:
        changes += [("model.remat=full and optim.in_backward=true", dict(remat="full", in_backward=True))]
    changes += [
        (f"model.remat=full and train.accumulate={k}", dict(remat="full", accumulate=k))
        for k in (2 * accumulate, 4 * accumulate, clips)
        if clips % k == 0
        and k > accumulate
        and (setup.train_config.mixing is None or setup.train_config.batch_size >= 2 * k)
    ]
    for words, change in changes:
        try:
            yield words, memory.program_bytes(compile_step(setup, **change))
        except jax.errors.JaxRuntimeError:
            continue
