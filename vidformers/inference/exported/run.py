"""Prints the likeliest classes of a clip: python run.py video.npy, see README.md. Needs jax, numpy and flatbuffers."""

import hashlib
import json
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent


def printable(text):
    """Returns the text with escape sequences in place of characters that a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def stop(sentence):
    print(printable(sentence), file=sys.stderr)
    sys.exit(2)


def read(name, sha256=None):
    """Returns the content of a file of the export. `sha256` is its digest, if config.json has it."""
    path = HERE / name
    if not path.is_file():  # a pipe would wait for ever
        stop(f"{path} is missing. Copy the export again.")
    content = path.read_bytes()
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        stop(f"{path} is not the file that was exported. Copy the export again.")
    return content


def read_parameters(content):
    """Returns float32 arrays by name from the content of a safetensors file.

    The file holds 8 bytes with the length of a JSON header, the header, and the arrays.
    """
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
    config = json.loads(read("config.json"))
    digests = config.get("sha256", {})
    parameters = jax.device_put(read_parameters(read("model.safetensors", digests.get("model.safetensors"))))
    program = jax.export.deserialize(bytearray(read("model.stablehlo", digests.get("model.stablehlo"))))
    return partial(jax.jit(program.call), parameters), config


def read_input(path, name, spec):
    """Returns an input of the model with a batch axis in front."""
    shape = tuple(spec["shape"])
    try:
        if not Path(path).is_file():
            stop(f"{path} is not a file.")
        array = np.load(path, mmap_mode="r")  # checks that the file is as long as its header says
    except (OSError, ValueError) as error:
        stop(f"{path} is not an array of numpy.save: {error}")
    if array.shape[-len(shape) :] != shape or array.ndim > 1 + len(shape) or array.dtype != spec["type"]:
        stop(
            f"{path} is {array.dtype} of shape {array.shape}, but {name} must be {spec['type']} of shape {shape} "
            f"({spec['axes']}), or several clips of one video stacked along a new first axis."
        )
    return array.reshape(-1, *shape)


def main(paths):
    sys.stdout.reconfigure(errors="backslashreplace")  # characters that the terminal lacks are escaped
    try:
        model, config = load()
        classes = [str(config["id2label"][str(label)]) for label in range(len(config["id2label"]))]
        specs, average = config["inputs"], config["views"]["average"]
    except Exception as error:
        stop(f"{HERE} holds a damaged export ({type(error).__name__}: {error}). Copy the export again.")
    if len(paths) != len(specs):
        stop("usage: python run.py " + " ".join(f"{name}.npy" for name in specs))
    inputs = [read_input(path, name, spec) for path, (name, spec) in zip(paths, specs.items(), strict=True)]
    logits = np.asarray(model(*inputs))
    if average == "logits":
        logits = logits.mean(axis=0, keepdims=True)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).mean(axis=0)
    for label in np.argsort(-probabilities, kind="stable")[:5]:
        print(f"{probabilities[label]:7.2%}  {printable(classes[label])}")


if __name__ == "__main__":
    main(sys.argv[1:])
