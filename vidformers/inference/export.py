"""Exports a trained model to a folder that runs without vidformers, and the command `--mode=export`."""

import hashlib
import importlib.metadata
import json
from functools import partial
from pathlib import Path
from string import Template

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from input_pipeline.files import atomic_folder, write_bytes, write_text
from input_pipeline.labels import MANY, ONE
from input_pipeline.outputs import new_folder, require_space
from vidformers.inference.commands import load_and_log
from vidformers.inference.predictor import CLIP_FIELDS
from vidformers.models.vtn import TemporalEncoder
from vidformers.parallel.target import traced_for
from vidformers.pretrained.native import resolve_size
from vidformers.progress import log, reported
from vidformers.training.run_json import read_run_json

FORMAT = {"format": "vidformers", "version": "1"}
PLATFORMS = ("cpu", "cuda", "tpu")
_TEMPLATES = Path(__file__).parent / "exported"
_INDEX_TEXT = "`index.npy` holds the int32 index of each frame in the video.\n"


def export(config: dict, workdir, out: str) -> None:
    """Exports the parameters that `--mode=predict` would use to the folder `out`.

    The folder holds:
        model.safetensors: every parameter in float32 by its path.
        model.stablehlo: the model as a program, see `export_program`.
        config.json: the fields of the model, the inputs of the program, the class names and how clips are cut.
        run.py, README.md: a program that runs the model, and instructions for users without vidformers.

    Raises:
        ConfigError: there is no checkpoint, it belongs to another model, or `out` is not an empty folder.
        DataError: `out` cannot be made, or another command is making it.
    """
    folder = Path(out).absolute()
    with new_folder(folder, "out"):
        _export(config, workdir, folder)


def _export(config: dict, workdir, folder: Path) -> None:
    run = read_run_json(workdir)
    predictor = load_and_log(config, workdir)
    require_space(folder, sum(4 * leaf.size for leaf in jax.tree.leaves(predictor.parameters)), "out")
    metadata = {
        "model": resolve_size(config["model"]),
        "id2label": dict(enumerate(predictor.classes)),
        "frames": {name: config["data"][name] for name in CLIP_FIELDS} | {"rule": predictor.sampling_rule},
        "views": {name: config["eval"][name] for name in ("clips", "crops", "average")},
        "labels": MANY if predictor.scoring.has_several_labels else ONE,
        "threshold": predictor.protocol.threshold,
        "step": predictor.step,
        "commit": run.get("commit"),
        "data": {split: run["data"].get(split) for split in ("train", "val")},
    }
    make_model = predictor.make_model
    if "frames_at_once" in config["model"]:  # an exported program computes all frames of a clip at once
        make_model = partial(make_model, frames_at_once=None)
    write_export(folder, make_model, predictor.parameters, metadata)
    log(f"Exported {workdir} at step {predictor.step} to {folder}. {folder}/README.md describes its use.")


def write_export(folder: Path, make_model, parameters, metadata: dict) -> None:
    """Writes an export atomically.

    Args:
        folder: an absolute path. The folder does not exist or is empty.
        make_model: function of `rngs` that builds the model.
        parameters: the parameters of the model as a tree of arrays.
        metadata: the contents of config.json, except for the inputs, their normalisation and the digests of the files.
    """
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    contents = {
        "model.safetensors": safetensors.numpy.save(parameter_arrays(parameters), FORMAT),
        "model.stablehlo": _program_bytes(model),
    }
    config = (
        FORMAT
        | metadata
        | {
            "inputs": input_specs(model),
            "colours": "rgb",
            "range": [0, 255],
            "normalisation": "inside the program: (video / 255 - image_mean) / image_std",
            "image_mean": metadata["model"]["mean"],
            "image_std": metadata["model"]["std"],
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        }
    )
    substitutes = {
        "model": metadata["model"]["name"],
        "classes": len(metadata["id2label"]),
        "step": metadata["step"],
        "shape": " x ".join(map(str, model.shape)),
        "jax": jax.__version__,
        "platforms": ", ".join(PLATFORMS),
        "flatbuffers": importlib.metadata.version("flatbuffers"),
        "arguments": " ".join(f"{name}.npy" for name in config["inputs"]),
        "rule": metadata["frames"]["rule"],
        "index_text": _INDEX_TEXT if "index" in config["inputs"] else "",
        "index_code": 'np.save("index.npy", clip.index)\n' if "index" in config["inputs"] else "",
    }
    readme = Template((_TEMPLATES / "README.md").read_text(encoding="utf-8")).substitute(substitutes)
    with atomic_folder(folder) as temporary:
        for name, content in contents.items():
            write_bytes(temporary / name, content)
        write_text(temporary / "config.json", json.dumps(config, indent=1) + "\n")
        write_text(temporary / "run.py", (_TEMPLATES / "run.py").read_text(encoding="utf-8"))
        write_text(temporary / "README.md", readme)


def _program_bytes(model) -> bytes:
    with reported("Writing the model as a program"):
        return bytes(export_program(model).serialize())


def input_specs(model) -> dict[str, dict]:
    """Returns the axes, the shape without the batch axis, and the type of each input besides the parameters."""
    specs = {"video": {"axes": "t y x c", "shape": list(model.shape), "type": "uint8"}}
    if isinstance(model.readout, TemporalEncoder):  # reads the frame index of each frame
        specs["index"] = {"axes": "t", "shape": [model.shape[0]], "type": "int32"}
    return specs


def parameter_arrays(parameters) -> dict[str, np.ndarray]:
    """Returns parameters in float32 by path. The parts of a path are joined by dots."""
    return {
        _path_name(path): np.ascontiguousarray(jax.device_get(leaf), np.float32)
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)
    }


def export_program(model) -> jax.export.Exported:
    """Exports the forward pass of an abstract model for any batch size and for each of `PLATFORMS`.

    Returns:
        A program (parameters, video, [index]) -> float32 logits (b k). `parameters` is a dictionary as
        `parameter_arrays` returns it, `video` is uint8 (b t y x 3), and `index` (b t) is the frame indices. Only VTN
        has the argument `index`.
    """
    graph, state = nnx.split(model)
    leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    shapes = {_path_name(path): jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in leaves}

    def logits(parameters, video, index=None):
        tree = jax.tree.unflatten(structure, [parameters[name] for name in shapes])
        return nnx.merge(graph, tree)(video, index=index).astype(jnp.float32)

    batch = jax.export.symbolic_shape("b")
    inputs = [jax.ShapeDtypeStruct((*batch, *spec["shape"]), spec["type"]) for spec in input_specs(model).values()]
    with traced_for("cpu"):  # one program for all platforms, without the layouts and kernels of a single one
        return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(shapes, *inputs)


def _path_name(path) -> str:
    return ".".join(str(part.key) for part in path)
