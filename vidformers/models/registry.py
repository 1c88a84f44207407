"""The table of models: each is a sequence of stages, each stage a block of sublayers."""

from dataclasses import fields

from flax import nnx

from vidformers.errors import ConfigError, require
from vidformers.models.config import ModelConfig
from vidformers.models.cvt import cvt
from vidformers.models.encoder import Classifier
from vidformers.models.havit import havit
from vidformers.models.joint import joint
from vidformers.models.mevit import mevit
from vidformers.models.msca import msca
from vidformers.models.stat import stat
from vidformers.models.swin import swin
from vidformers.models.timesformer import timesformer
from vidformers.models.tokenshift import tokenshift
from vidformers.models.vit import vit
from vidformers.models.vtn import vtn

MODELS = {
    "vit": vit,
    "timesformer": timesformer,
    "joint": joint,
    "mevit": mevit,
    "havit": havit,
    "msca": msca,
    "tokenshift": tokenshift,
    "vtn": vtn,
    "swin": swin,
    "cvt": cvt,
    "stat": stat,
}
WHOLE_CLIPS = ("cvt", "stat")  # those that keep the frames of a clip on one device
# The shared fields whose defaults are other ones.
DEFAULTS = {
    "swin": dict(size="Swin-T", patch_size=4),
    "cvt": dict(size="CvT-13", patch_size=4),
    "stat": dict(size="STAT", patch_size=8),
}


def build(name: str, *, rngs: nnx.Rngs, **options) -> Classifier:
    """The model `name` of `MODELS` with the fields of `ModelConfig` and its own, as in `build('mevit', num_classes=10)`.

    Raises:
        ConfigError: an unknown model, an unknown field, or a geometry that cannot work.
    """
    require(name in MODELS, f"model.name={name!r} must be one of {', '.join(MODELS)}.")
    shared = {field.name for field in fields(ModelConfig)}
    own = set(MODELS[name].__kwdefaults__ or {})
    for field in options:
        if field not in shared | own:
            raise ConfigError(f"model.{field} is not a field of the model {name!r}.")
    parts = ModelConfig(**DEFAULTS.get(name, {}) | {key: value for key, value in options.items() if key in shared})
    return MODELS[name](parts, rngs=rngs, **{key: value for key, value in options.items() if key in own})
