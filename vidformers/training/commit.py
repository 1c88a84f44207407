"""The git commit of this code, for `run.json` and for the lines of benchmarks."""

import subprocess
from functools import partial
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def git_commit(*paths: str) -> str | None:
    """Returns the commit of this code, or None if the code is not in a Git repository.

    '-dirty' follows if tracked files have changed since.

    Args:
        *paths: files and folders of the repository whose changes count; by default all.
    """
    if not (_ROOT / ".git").exists():
        return None
    try:
        git = partial(subprocess.run, cwd=_ROOT, capture_output=True, text=True, check=True)
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(
            ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", *paths]
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changed else "")
