"""A trained model for elsewhere: its parameters, a program that runs without this library, and what both are of."""

import importlib.metadata
import json
import shutil
from functools import partial
from pathlib import Path
from string import Template

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from input_pipeline.files import write_bytes, write_text
from vidformers.errors import require
from vidformers.inference.predict import CLIP_FIELDS, load_for_command, read_run_json
from vidformers.models.vtn import TemporalEncoder
from vidformers.pretrained import native as own
from vidformers.progress import log

FORMAT = {"format": "vidformers", "version": "1"}
PLATFORMS = ("cpu", "cuda", "tpu")
_BESIDE = Path(__file__).parent / "exported"  # run.py and README.md as they go along


def export(config: dict, workdir, out: str) -> None:
    """`--mode=export`: the folder `out`, of the parameters that a prediction would use.

    It holds model.safetensors (every parameter in float32 by its path), model.stablehlo (see `program`), config.json
    (what both are, the classes and how clips are cut), and a run.py and README.md for those who have nothing else.

    Raises:
        ConfigError: no checkpoint, one of another model, or an `out` that holds something.
    """
    folder = Path(out).absolute()
    _check_free(folder)
    run = read_run_json(workdir)
    predictor = load_for_command(config, workdir)
    about = {
        "model": own.resolve_size(config["model"]),
        "id2label": dict(enumerate(predictor.classes)),
        "frames": {name: config["data"][name] for name in CLIP_FIELDS},
        "views": {name: config["eval"][name] for name in ("clips", "crops", "average")},
        "step": predictor.step,
        "commit": run["commit"],
        "data": {split: run["data"][split] for split in ("train", "val")},
    }
    make_model = predictor.make_model
    if "frames_at_once" in config["model"]:  # a loop over frames needs to know how many there are
        make_model = partial(make_model, frames_at_once=None)
    write(folder, make_model, predictor.parameters, about)
    log(f"{workdir} at step {predictor.step} is in {folder}: {folder}/README.md says how to use it.")


def write(folder: Path, make_model, parameters, about: dict) -> None:
    """Makes `folder`, whole or not at all.

    Args:
        folder: absolute; not there yet, or empty.
        make_model: rngs -> the model.
        parameters: its tree of arrays.
        about: what config.json says besides the inputs and their normalisation.
    Raises:
        ConfigError: the folder holds something.
    """
    _check_free(folder)
    model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
    mean, std = about["model"]["mean"], about["model"]["std"]
    config = (
        FORMAT
        | about
        | {
            "inputs": inputs(model),
            "colours": "rgb",
            "range": [0, 255],
            "normalisation": "inside the program: (video / 255 - image_mean) / image_std",
            "image_mean": mean,
            "image_std": std,
        }
    )
    words = {
        "model": about["model"]["name"],
        "classes": len(about["id2label"]),
        "step": about["step"],
        "shape": " x ".join(map(str, model.shape)),
        "jax": jax.__version__,
        "platforms": ", ".join(PLATFORMS),
        "flatbuffers": importlib.metadata.version("flatbuffers"),
        "arguments": " ".join(f"{name}.npy" for name in config["inputs"]),
    }
    readme = Template((_BESIDE / "README.md").read_text(encoding="utf-8")).substitute(words)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    part.mkdir(parents=True)
    try:
        write_bytes(part / "model.safetensors", safetensors.numpy.save(arrays(parameters), FORMAT))
        write_bytes(part / "model.stablehlo", program(model).serialize())
        write_text(part / "config.json", json.dumps(config, indent=1) + "\n")
        write_text(part / "run.py", (_BESIDE / "run.py").read_text(encoding="utf-8"))
        write_text(part / "README.md", readme)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_free(folder: Path) -> None:
    require(
        not folder.exists() or folder.is_dir() and not any(folder.iterdir()),
        f"--out={folder} is there already and is no empty folder.",
    )


def inputs(model) -> dict:
    """What the program takes beside the parameters, by name: shape without the batch, and type."""
    found = {"video": {"axes": "t y x c", "shape": list(model.shape), "type": "uint8"}}
    if isinstance(model.readout, TemporalEncoder):  # the place of each frame in its video
        found["index"] = {"axes": "t", "shape": [model.shape[0]], "type": "int32"}
    return found


def arrays(parameters) -> dict[str, np.ndarray]:
    """A tree of parameters as float32 by path, its parts joined by dots."""
    return {
        _name(path): np.ascontiguousarray(jax.device_get(leaf), np.float32)
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)
    }


def program(model) -> jax.export.Exported:
    """What an abstract model computes, for any batch and each of `PLATFORMS`.

    It takes the parameters, a dictionary as of `arrays`, uint8 clips (b t y x 3), and for VTN the index (b t) of each
    frame in its video, and gives float32 logits (b k).
    """
    graph, state = nnx.split(model)
    leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    shapes = {_name(path): jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in leaves}

    def logits(parameters, video, index=None):
        tree = jax.tree.unflatten(structure, [parameters[name] for name in shapes])
        return nnx.merge(graph, tree)(video, index=index).astype(jnp.float32)

    batch = jax.export.symbolic_shape("b")
    clips = [jax.ShapeDtypeStruct((*batch, *given["shape"]), given["type"]) for given in inputs(model).values()]
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(shapes, *clips)


def _name(path) -> str:
    return ".".join(str(part.key) for part in path)
