"""Video-classification transformers in JAX."""

from typing import TYPE_CHECKING

from vidformers.errors import ConfigError

if TYPE_CHECKING:
    from vidformers.models.registry import MODELS, build

__all__ = ["MODELS", "ConfigError", "build", "load"]


def load(workdir):
    """Returns the trained model of a run with its class names: `load("runs/demo").predict("clip.mp4")`.

    Args:
        workdir: folder of a run.
    """
    from vidformers.inference.predictor import load  # imports the input pipeline, which the models do not need

    return load(workdir)


def __getattr__(name):
    """Imports `MODELS` and `build` on first use: they need JAX, which takes seconds, and `main.py --help` does not."""
    if name in ("MODELS", "build"):
        from vidformers.models import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
