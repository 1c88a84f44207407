"""The installed package: a wheel, imported from outside the folder."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution

import pytest
from house import ROOT

BUILT = ("pyproject.toml", "README.md", "LICENSE", "vidformers", "input_pipeline")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the wheel is installed, without its requirements."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path in (*map(ROOT.joinpath, BUILT), *ROOT.glob("requirements*.txt")):
        ignored = shutil.ignore_patterns("__pycache__")
        (shutil.copytree if path.is_dir() else shutil.copy)(
            path, source / path.name, **({"ignore": ignored} if path.is_dir() else {})
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        f"--target={target}",
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(site, folder, script):
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *script], cwd=folder, env=environment, capture_output=True, text=True)


def test_it_is_imported_from_elsewhere_and_builds_a_model(site, tmp_path):
    script = (
        "import vidformers; from vidformers import build, load; from flax import nnx\n"
        "model = nnx.eval_shape(lambda: build('mevit', num_classes=10, rngs=nnx.Rngs(0)))\n"
        "print(vidformers.__file__, model.num_classes)"
    )
    done = run(site, tmp_path, ["-c", script])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "vidformers" / "__init__.py"), "10"]


@pytest.mark.quick
def test_the_wheel_holds_both_packages_and_what_they_read(site):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"__pycache__"} == {
        "vidformers",
        "input_pipeline",
    }
    for name in ("py.typed", "inference/exported/run.py", "inference/exported/README.md"):
        assert (site / "vidformers" / name).is_file(), name


@pytest.mark.quick
def test_its_metadata_has_the_requirements_and_the_extras(site):
    (folder,) = site.glob("vidformers-*.dist-info")
    about = Distribution.at(folder)
    required = about.requires or []
    assert any(line.startswith("jax") and "extra" not in line for line in required)
    assert not any(line.startswith("pytest") and "extra" not in line for line in required)
    assert set(about.metadata.get_all("Provides-Extra")) == {"test", "cuda", "tpu", "beam", "wandb"}
    assert about.metadata["License-Expression"] == "Apache-2.0"


def test_a_command_that_reads_a_config_says_that_it_needs_a_clone(site, tmp_path):
    done = run(site, tmp_path, ["-m", "input_pipeline.check", "--config=configs/demo.py"])
    assert done.returncode == 2 and done.stderr.startswith("vidformers: ") and "clone" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
