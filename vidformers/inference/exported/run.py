"""Prints the likeliest classes of a clip: python run.py video.npy, see README.md. Needs jax, numpy and flatbuffers."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent


def read_parameters(path):
    """Returns float32 arrays by name from a safetensors file.

    The file holds 8 bytes with the length of a JSON header, the header, and the arrays.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return {
        name: np.frombuffer(content, np.float32, math.prod(entry["shape"]), start + entry["data_offsets"][0]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def load():
    """Returns the model and the contents of config.json.

    The model takes its inputs with a batch axis b in front, returns float32 logits (b k), and is compiled once per b.
    """
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    parameters = jax.device_put(read_parameters(HERE / "model.safetensors"))
    program = jax.export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
    return partial(jax.jit(program.call), parameters), config


def main(paths):
    sys.stdout.reconfigure(errors="backslashreplace")  # characters that the terminal lacks are escaped
    model, config = load()
    if len(paths) != len(config["inputs"]):
        sys.exit("usage: python run.py " + " ".join(f"{name}.npy" for name in config["inputs"]))
    inputs = []
    for path, (name, spec) in zip(paths, config["inputs"].items(), strict=True):
        array, shape = np.load(path), tuple(spec["shape"])
        if array.shape[-len(shape) :] != shape or array.ndim > 1 + len(shape) or array.dtype != spec["type"]:
            sys.exit(
                f"{path} is {array.dtype} of shape {array.shape}, but {name} must be {spec['type']} of shape {shape} "
                f"({spec['axes']}), or several clips of one video stacked along a new first axis."
            )
        inputs.append(array.reshape(-1, *shape))
    logits = np.asarray(model(*inputs))
    if config["views"]["average"] == "logits":
        logits = logits.mean(axis=0, keepdims=True)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).mean(axis=0)
    for label in np.argsort(-probabilities, kind="stable")[:5]:
        name = config["id2label"][str(label)]
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)  # a name gives no orders to a terminal
        print(f"{probabilities[label]:7.2%}  {shown}")


if __name__ == "__main__":
    main(sys.argv[1:])
