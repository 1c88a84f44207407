"""Checks of a config that concern several of its sections. All raise ConfigError."""

from dataclasses import replace

from vidformers.errors import multiples_near, require
from vidformers.models.registry import MODELS
from vidformers.training.config import TrainConfig
from vidformers.training.optim import OptimConfig
from vidformers.training.scoring import scoring_of
from vidformers.training.sections import Sections


def check_context(config: dict, mesh) -> None:
    """Checks that the frames of a clip can be sharded over the axis `context` of the mesh."""
    context, name = mesh.shape["context"], config["model"]["name"]
    require(
        config["data"]["frames"] % context == 0,
        f"data.frames={config['data']['frames']} must be divisible by mesh.context={context}. Set data.frames to "
        f"{multiples_near(context, config['data']['frames'])}.",
    )
    require(
        context == 1 or name not in MODELS or not MODELS[name].traits.frames_on_one_device,
        f"mesh.context={context} does not work with model.name={name}: XLA (jaxlib 0.10) computes wrong gradients of "
        "its convolutions if the frames of a clip are sharded. Use mesh.fsdp instead.",
    )


def checked_best(sections: Sections) -> str:
    """Returns the metric by which the best checkpoint is chosen, which the evaluations of the run must yield."""
    best, protocol = sections.checkpoint.best_metric(sections.data.labels), sections.eval
    scoring = scoring_of(sections.data.labels, protocol.threshold)
    protocols = (replace(protocol, clips=1, crops=1), protocol)
    metrics = [f"val/{name}@{protocol.name}" for protocol in protocols for name in scoring.selecting_metrics]
    require(best in metrics, f"checkpoint.best={best} must be one of {', '.join(dict.fromkeys(metrics))}.")
    return best


def check_frozen(optim: OptimConfig, parameters: dict) -> None:
    """Checks that optim.frozen names modules of the model."""
    for name in optim.frozen:
        require(
            name in parameters,
            f"optim.frozen={name!r} must name modules of the model: {', '.join(parameters)}.",
        )


def check_in_backward(config: dict, train_config: TrainConfig, optim: OptimConfig) -> None:
    """Checks the fields that optim.in_backward needs."""
    remat, accumulate = config["model"]["remat"], train_config.accumulate
    require(
        not optim.in_backward or accumulate == 1 and remat == "full",
        "optim.in_backward=true keeps only the input of each layer and updates after every batch. It needs "
        f"model.remat=full, not {remat}, and train.accumulate=1, not {accumulate}.",
    )
