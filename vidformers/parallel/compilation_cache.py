"""The cache of compiled programs on disk."""

import os
import tempfile
import warnings
from pathlib import Path

import jax

from vidformers.parallel.processes import is_distributed
from vidformers.progress import log


def enable_compilation_cache(workdir) -> None:
    """Caches compiled programs on disk, so that a run that is started again does not compile again.

    A run of one process uses the user's cache folder, `$XDG_CACHE_HOME/vidformers/compiled`. A run of several processes
    uses `compiled` in the workdir, which all hosts share. On GPUs the processes share the autotuning of a program: a
    process that compiles waits for the others. So either all processes must find a program in the cache or none.

    A cache folder that `JAX_COMPILATION_CACHE_DIR` sets takes precedence. If there is no folder that can be written to,
    nothing is cached, and a message is logged.

    Args:
        workdir: the folder of the run.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = Path(workdir).absolute() / "compiled" if is_distributed() else _user_cache()
    except (OSError, RuntimeError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else "there is no home folder"
        log(f"Compiled programs are not cached ({reason}). Set XDG_CACHE_HOME to a folder that you may write to.")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _remove_damaged_programs(folder)


def _user_cache() -> Path:
    """Returns the folder of the user's cache, which it creates.

    Raises:
        OSError: the folder cannot be written to.
        RuntimeError: the system does not know the home folder of the user.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidformers" / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # raises if the folder cannot be written to
    return folder


def _remove_damaged_programs(folder: Path) -> None:
    """Empties the cache when JAX warns about a damaged entry, and suppresses the warning.

    A kill or a full disk can leave an incomplete program. JAX does not replace it, so it would warn at every start.
    """
    show_warning = warnings.showwarning

    def show_or_remove(message, *args, **kwargs):
        if "persistent compilation cache" not in str(message):
            return show_warning(message, *args, **kwargs)
        for program in filter(Path.is_file, folder.glob("*")):  # XLA also keeps folders there
            program.unlink(missing_ok=True)

    warnings.showwarning = show_or_remove
