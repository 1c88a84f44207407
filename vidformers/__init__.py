"""Video-classification transformers in JAX."""

from vidformers.errors import ConfigError
from vidformers.models.registry import MODELS, build

__all__ = ["MODELS", "ConfigError", "build", "load"]


def load(workdir):
    """Loads the model of a run: `load("runs/demo").predict("clip.mp4")`. See `vidformers.inference.predictor.load`."""
    from vidformers.inference.predictor import load  # imported here: the input pipeline is not needed to build models

    return load(workdir)
