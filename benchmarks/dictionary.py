"""How much of each attention a dictionary of external tokens takes, before the first step of a run.

Command: python -m benchmarks.dictionary --config=configs/havit_s16.py [--config.model.dictionary_scale=0.1]
    [--config.init.weights=FILE] [--clips=2]
The model has drawn parameters, or the weights of init.weights. The clips are smooth noise that moves. Prints one line
for each layer and attention with a dictionary, the mean of each attention, and as the last line a JSON object. Only
model.hybrid=combined has one softmax over clip and dictionary, and with it a share.
"""

import json
import sys
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs.loading import FlagError, read_flags, require
from input_pipeline.text import print_line
from vidformers import ConfigError, build
from vidformers.inference.explain.passes import PropagationPass, RecordingPass
from vidformers.pretrained import Init, load


def moving_noise(clips: int, frames: int, size: int) -> np.ndarray:
    """Returns clips of a smooth texture that moves, (clips, frames, size, size, 3) uint8."""
    rng = np.random.default_rng(0)
    side = size + 4 * frames
    textures = [cv2.GaussianBlur(rng.normal(size=(side, side, 3)), (0, 0), size / 16) for _ in range(clips)]
    levels = [np.clip(128 + 50 * texture / texture.std(), 0, 255).astype(np.uint8) for texture in textures]
    return np.stack([[x[4 * t : 4 * t + size, 2 * t : 2 * t + size] for t in range(frames)] for x in levels])


def shares(graph, parameters, video) -> dict[str, np.ndarray]:
    """Returns the share of each attention on its dictionary, by layer, as a mean over the clips.

    Args:
        graph, parameters: the structure of a model for `nnx.merge`, and its parameters.
        video: (b t y x 3) uint8.
    """

    @jax.jit
    def run(parameters, video):
        model = nnx.merge(graph, parameters)
        recording = RecordingPass()
        recording(model, video)
        propagation = PropagationPass(recording.weights, average_with_identity=True)
        propagation(model, jnp.zeros((len(video), *recording.grid, 1)))
        return propagation.dictionary_shares

    found: dict[str, list] = {}
    for name, share in run(parameters, video).items():
        found.setdefault(name.split(" ", 1)[1], []).extend(np.asarray(share).mean(axis=1).tolist())
    return {name: np.array(layers) for name, layers in found.items()}


def report(config, clips: int) -> dict[str, float]:
    """Prints the table of a config, and returns the mean share of each attention."""
    section = config.model.to_dict()
    require(
        section["dictionary"] > 0 and section["hybrid"] == "combined",
        "The model has no dictionary in a softmax with the clip. Set --config.model.dictionary=112 and "
        "--config.model.hybrid=combined.",
    )
    make_model = partial(build, **section | dict(dtype="float32"))
    graph, state = nnx.split(make_model(rngs=nnx.Rngs(config.seed)))
    parameters, init = nnx.to_pure_dict(state), Init(**config.init.to_dict())
    if init.weights is not None:
        parameters = load(init, make_model).place_into(parameters)
    found = shares(graph, parameters, moving_noise(clips, section["frames"], section["image_size"]))
    for name, layers in found.items():
        for layer, share in enumerate(layers):
            print(f"{name:20} layer {layer:2}  {share:6.1%}")
    means = {name: round(float(layers.mean()), 4) for name, layers in found.items()}
    for name, mean in means.items():
        print(f"{name:20} mean      {mean:6.1%}")
    return means


def main(argv: list[str]) -> int:
    """Runs the command, and returns the exit status."""
    try:
        config, flags = read_flags(argv, {"clips": "2"})
        require(
            str(flags["clips"]).isdecimal() and flags["clips"] != "0", f"--clips={flags['clips']} must be a number."
        )
        means = report(config, int(str(flags["clips"])))
    except (FlagError, ConfigError) as error:
        print_line(f"benchmarks.dictionary: {error}", sys.stderr)
        return 2
    print(json.dumps({"dictionary": config.model.dictionary, "scale": config.model.dictionary_scale, "shares": means}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
