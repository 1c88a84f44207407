"""Video-classification transformers in JAX."""

from vidformers.errors import ConfigError
from vidformers.models import MODELS, build

__all__ = ["MODELS", "ConfigError", "build"]
