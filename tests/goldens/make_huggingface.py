"""Writes the Hugging Face goldens: small models with random weights, one input each, and their outputs.

Needs torch and transformers. The library and its tests import neither: the tests read the .npz files beside this
script. To write the files again, in an environment of its own:

    pip install torch transformers numpy safetensors
    python tests/goldens/make_huggingface.py

Each archive holds every parameter under its name in the checkpoint file that `save_pretrained` writes, `input`
(float32, channels last), `output` and `versions` (JSON). Hugging Face's space-only TimeSformer does not average over
frames: its logits have one row per frame, clip by clip.
"""

import json
import pathlib
import platform
import tempfile

import numpy as np
import safetensors.numpy
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
FRAMES, SIZE, BATCH = 3, 24, 2
GEOMETRY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=SIZE,
    patch_size=8,
    layer_norm_eps=1e-6,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def draw(rng, shape, center=0.0, scale=1.0):
    """Returns normal numbers rounded to multiples of 1/256, which are exact in float32 and compress well."""
    return (np.round(rng.normal(center, scale, shape) * 256) / 256).astype(np.float32)


def randomise(model, rng):
    """Draws every parameter, also those that start at zero or one, so that each of them influences the answers."""
    for name, parameter in model.named_parameters():
        is_norm_weight = "layernorm" in name and name.endswith("weight")
        value = draw(rng, parameter.shape, center=float(is_norm_weight), scale=0.2)
        parameter.data.copy_(torch.from_numpy(value))


def checkpoint(model):
    """Returns the parameters under their names in a checkpoint file, which can differ from those of the modules."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.numpy.load_file(f"{folder}/model.safetensors")


def timesformer(attention_type):
    config = transformers.TimesformerConfig(
        **GEOMETRY, num_frames=FRAMES, num_labels=5, attention_type=attention_type, drop_path_rate=0
    )
    return transformers.TimesformerForVideoClassification(config)


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**GEOMETRY), add_pooling_layer=False)


def write(name, model, seed, leading, field):
    """Writes one archive. `leading` holds the axes of the input before y, x and c; `field` is the output to keep."""
    rng = np.random.default_rng(seed)
    randomise(model, rng)
    pixels = draw(rng, (*leading, SIZE, SIZE, 3))
    with torch.inference_mode():
        outputs = model.eval()(torch.from_numpy(np.moveaxis(pixels, -1, -3).copy()))
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        **checkpoint(model),
        input=pixels,
        output=outputs[field].numpy(),
        versions=np.array(json.dumps(versions)),
    )


if __name__ == "__main__":
    clips = (BATCH, FRAMES)
    write("timesformer_divided", timesformer("divided_space_time"), 0, clips, "logits")
    write("timesformer_joint", timesformer("joint_space_time"), 1, clips, "logits")
    write("timesformer_space_only", timesformer("space_only"), 2, clips, "logits")
    write("vit", vit(), 3, (BATCH,), "last_hidden_state")
