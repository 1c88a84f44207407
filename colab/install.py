"""Installs what `requirements.txt` needs and this environment lacks: the first cell of the notebook runs it.

Packages that lie in the ranges of `requirements.txt` stay as they are. A notebook service has often loaded some of
them, such as NumPy, before the first cell runs, and replacing a loaded package asks for a restart of the kernel.
"""

import importlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
# Packages that hold the same modules. A second one beside the first would overwrite its files.
SAME_MODULES = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}


def read_requirements(file: Path, gpu: bool) -> list[Requirement]:
    """Returns the requirements of a file, JAX with its plugin for GPUs if `gpu`."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    for requirement in requirements:
        if requirement.name == "jax" and gpu:
            requirement.extras = {"cuda12"}
    return requirements


def installed_version(name: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def found(requirement: Requirement) -> dict[str, str]:
    """Returns the installed packages that fulfil a requirement by themselves, with their versions: none or one."""
    for name in (requirement.name, *SAME_MODULES.get(requirement.name, ())):
        version = installed_version(name)
        if version and requirement.specifier.contains(version, prereleases=True):
            if requirement.extras and not _has_gpu_plugin(version):
                continue
            return {name: version}
    return {}


def _has_gpu_plugin(version: str) -> bool:
    return version in (installed_version("jax-cuda12-plugin"), installed_version("jax-cuda13-plugin"))


def install(requirements: list[Requirement]) -> None:
    """Installs the requirements that are not fulfilled, and says in one line what was found.

    The packages that are kept are pinned, so that no dependency of the others replaces them. If that has no solution,
    pip may replace them. A line says so.

    Raises:
        subprocess.CalledProcessError: pip finds no versions that fit together, or cannot download them.
    """
    keep = {name: version for requirement in requirements for name, version in found(requirement).items()}
    ranges = [f"{name}{requirement.specifier}" for requirement in requirements for name in found(requirement)]
    missing = [requirement for requirement in requirements if not found(requirement)]
    # Packages that are loaded and that a requirement needs in turn, such as NumPy, are kept, too.
    loaded = {name: installed_version(name) for name in ("numpy", "protobuf") if installed_version(name)}
    print(
        f"Python {sys.version.split()[0]}. Kept: {_listed(keep | loaded)}. "
        f"To install: {', '.join(map(str, missing)) or 'nothing'}."
    )
    if not missing:
        return
    packages = [str(requirement) for requirement in missing]
    if not _pip_installs(packages, [f"{name}=={version}" for name, version in (keep | loaded).items()]):
        print("These versions do not fit together with the packages that are kept, so that pip may replace some.")
        subprocess.run(_pip(*packages, *ranges), check=True)
    importlib.invalidate_caches()
    changed = [name for name, version in (keep | loaded).items() if installed_version(name) != version]
    if changed:
        print(f"Restart the kernel before the next cell, because these packages were replaced: {', '.join(changed)}.")


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]


def _pip_installs(packages: list[str], pins: list[str]) -> bool:
    return subprocess.run(_pip(*packages, *pins), capture_output=True).returncode == 0


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "nothing"


if __name__ == "__main__":
    install(read_requirements(REQUIREMENTS, gpu=os.path.exists("/dev/nvidia0")))
