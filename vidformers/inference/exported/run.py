"""The likeliest classes of a clip: python run.py video.npy, as README.md says. Needs jax, numpy and flatbuffers."""

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
    """float32 arrays by name. Safetensors: 8 bytes, the length of a header of JSON; the header; the arrays."""
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
    """(inputs with a batch axis in front -> float32 logits (b k), compiled for each b once; config.json)."""
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    parameters = jax.device_put(read_parameters(HERE / "model.safetensors"))
    program = jax.export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
    return partial(jax.jit(program.call), parameters), config


def main(paths):
    run, config = load()
    if len(paths) != len(config["inputs"]):
        sys.exit("usage: python run.py " + " ".join(f"{name}.npy" for name in config["inputs"]))
    views = []
    for path, (name, asked) in zip(paths, config["inputs"].items(), strict=True):
        array, shape = np.load(path), tuple(asked["shape"])
        if array.shape[-len(shape) :] != shape or array.ndim > 1 + len(shape) or array.dtype != asked["type"]:
            sys.exit(
                f"{path}: {name} must be {asked['type']} of shape {shape} ({asked['axes']}), or several views of "
                f"a video, one behind the other; it is {array.dtype} of shape {array.shape}."
            )
        views.append(array.reshape(-1, *shape))
    logits = np.asarray(run(*views))
    if config["views"]["average"] == "logits":
        logits = logits.mean(axis=0, keepdims=True)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    for label in np.argsort(-shares, kind="stable")[:5]:
        print(f"{shares[label]:7.2%}  {config['id2label'][str(label)]}")


if __name__ == "__main__":
    main(sys.argv[1:])
