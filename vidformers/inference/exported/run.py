"""Prints the likeliest classes of a clip: python run.py video.npy, see README.md. Needs jax, numpy and flatbuffers."""

import hashlib
import json
import math
import struct
import sys
from functools import partial
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent

# What the parsers of JSON, safetensors and flatbuffers raise for a damaged file. A missing package is none of these.
DAMAGE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    struct.error,
)


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


def read_config(content):
    """Returns the content of config.json, and the list `classes` of the class names.

    Raises an error of `DAMAGE_ERRORS` if the content lacks what this program reads.
    """
    config = json.loads(content)
    config["classes"] = [str(config["id2label"][str(label)]) for label in range(len(config["id2label"]))]
    [(tuple(spec["shape"]), spec["type"], spec["axes"]) for spec in config["inputs"].values()]
    config["views"]["average"], config.get("sha256", {}).values(), float(config.get("threshold", 0.5))
    return config


def read_program(content):
    """Returns the exported program from the content of model.stablehlo."""
    return jax.export.deserialize(bytearray(content))


def parse(reader, name, sha256=None):
    """Returns what `reader` makes of the content of a file of the export. `sha256` is its digest, if known."""
    content = read(name, sha256)
    try:
        return reader(content)
    except DAMAGE_ERRORS as error:
        if sha256 is not None:  # the file is the one that was exported, so this is an error of the program
            raise
        stop(f"{HERE} holds a damaged export ({name}: {type(error).__name__}: {error}). Copy the export again.")


def load():
    """Returns the model and the contents of config.json.

    The model takes its inputs with a batch axis b in front, returns float32 logits (b k), and is compiled once per b.
    """
    config = parse(read_config, "config.json")
    digests = config.get("sha256", {})
    parameters = jax.device_put(parse(read_parameters, "model.safetensors", digests.get("model.safetensors")))
    program = parse(read_program, "model.stablehlo", digests.get("model.stablehlo"))
    return partial(jax.jit(program.call), parameters), config


def read_input(path, name, spec):
    """Returns an input of the model with a batch axis in front."""
    shape = tuple(spec["shape"])
    try:
        if not Path(path).is_file():
            stop(f"{path} is not a file.")
        array = np.load(path, mmap_mode="r")  # checks that the file is as long as its header says
    except OSError as error:
        stop(f"{path} cannot be read: {error}")
    except (ValueError, EOFError):
        stop(
            f"{path} is not an array of numpy.save, or is cut off. {name} must be {spec['type']} of shape {shape} "
            f"({spec['axes']}). {HERE / 'README.md'} says how to make it from a video."
        )
    if array.shape[-len(shape) :] != shape or array.ndim > 1 + len(shape) or array.dtype != spec["type"]:
        stop(
            f"{path} is {array.dtype} of shape {array.shape}, but {name} must be {spec['type']} of shape {shape} "
            f"({spec['axes']}), or several clips of one video stacked along a new first axis."
        )
    return array.reshape(-1, *shape)


def main(paths):
    sys.stdout.reconfigure(errors="backslashreplace")  # characters that the terminal lacks are escaped
    if {"-h", "--help"}.intersection(paths):
        print(__doc__)
        return
    model, config = load()
    classes = config["classes"]
    specs, average = config["inputs"], config["views"]["average"]
    if len(paths) != len(specs):
        stop("usage: python run.py " + " ".join(f"{name}.npy" for name in specs))
    inputs = [read_input(path, name, spec) for path, (name, spec) in zip(paths, specs.items(), strict=True)]
    logits = np.asarray(model(*inputs))
    if average == "logits":
        logits = logits.mean(axis=0, keepdims=True)
    several = config.get("labels") == "many"
    if several:
        probabilities = np.exp(-np.logaddexp(0, -logits)).mean(axis=0)
    else:
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).mean(axis=0)
    predicted = int((probabilities > config.get("threshold", 0.5)).sum()) if several else 0
    for rank, label in enumerate(np.argsort(-probabilities, kind="stable")[: max(predicted, 5)]):
        print(f"{probabilities[label]:7.2%}  {printable(classes[label])}{'  predicted' if rank < predicted else ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
