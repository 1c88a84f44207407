"""Video-classification transformers in JAX."""

from vidformers.errors import ConfigError
from vidformers.models.registry import MODELS, build

__all__ = ["MODELS", "ConfigError", "build", "load"]


def load(workdir):
    """The model of a run with its classes, see `predict.load`: `load("runs/demo").predict("clip.mp4")`."""
    from vidformers.inference.predict import load  # imports the pipeline, which models do without

    return load(workdir)
