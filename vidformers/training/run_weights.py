"""The parameters of a run as weights for another one: init.weights=runs/mine."""

from pathlib import Path

from vidformers.errors import ConfigError
from vidformers.models.registry import with_default_fields
from vidformers.pretrained import orbax_file
from vidformers.pretrained.files import File, check_arrays, digest_of
from vidformers.pretrained.native import resolve_size
from vidformers.progress import log
from vidformers.training.checkpoint_folder import CheckpointFolder
from vidformers.training.run_json import read_run_json


def open_run(source: str) -> File | None:
    """Returns the parameters of the newest checkpoint of a run that is not damaged, or of their EMA if there is one.

    Args:
        source: the value of init.weights.
    Returns:
        Arrays by the names that an export has, with its metadata. None if `source` is not the folder of a run.
    Raises:
        ConfigError: the run has no sound checkpoint, or its `run.json` is damaged.
    """
    folder = Path(source).expanduser()
    if not (folder / "run.json").is_file():
        return None
    run, checkpoints = read_run_json(folder), CheckpointFolder(folder / "checkpoints")
    for step in reversed(checkpoints.steps()):
        if (damage := checkpoints.find_damage(step)) is not None:
            log(f"The checkpoint of step {step} in {checkpoints.path} is damaged: {damage}. It is left out.")
            continue
        path = checkpoints.step_path(step)
        arrays, _, files = orbax_file.read(path / "state", is_verified=True)
        check_arrays(path, arrays)
        return File(
            arrays={name.replace("/", "."): array for name, array in arrays.items()},
            path=path,
            sha256=digest_of(files),
            metadata={
                "model": resolve_size(with_default_fields(run["config"]["model"])),
                "id2label": {str(label): name for label, name in enumerate(run["data"].get("classes") or ())},
            },
        )
    raise ConfigError(
        f"init.weights={source} is the folder of a run without a checkpoint that can be read. Train that run first."
    )
