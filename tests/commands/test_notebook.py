"""The notebook runs from top to bottom, and is stored without outputs."""

import importlib.util
import json
import subprocess

import nbclient
import nbformat
import pytest
import safetensors.numpy
from command import CACHE, ROOT, render
from drawn import draw
from packaging.requirements import Requirement
from tiny import QUICK

NOTEBOOK = ROOT / "colab" / "vidformers.ipynb"
WIDTH = 64
# The parameters of a ViT with one layer in timm's layout, for patches of 16 on images of 32 pixels.
VIT = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, 5, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
    "patch_embed.proj.bias": (WIDTH,),
    "blocks.0.attn.qkv.weight": (3 * WIDTH, WIDTH),
    "blocks.0.attn.qkv.bias": (3 * WIDTH,),
    "blocks.0.attn.proj.weight": (WIDTH, WIDTH),
    "blocks.0.attn.proj.bias": (WIDTH,),
    "blocks.0.mlp.fc1.weight": (4 * WIDTH, WIDTH),
    "blocks.0.mlp.fc1.bias": (4 * WIDTH,),
    "blocks.0.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
    "blocks.0.mlp.fc2.bias": (WIDTH,),
}
VIT |= {
    f"{norm}.{part}": (WIDTH,) for norm in ("norm", "blocks.0.norm1", "blocks.0.norm2") for part in ("weight", "bias")
}


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


@pytest.mark.quick
def test_the_notebook_is_stored_without_outputs(cells):
    for cell in cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def load_install():
    spec = importlib.util.spec_from_file_location("install", ROOT / "colab" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.quick
def test_the_install_cell_keeps_what_the_ranges_admit(monkeypatch, capsys):
    install = load_install()
    versions = {
        "jax": "0.7.2",
        "numpy": "2.0.2",
        "opencv-contrib-python": "4.12.0.88",
        "pillow": "11.3.0",
        "av": "18.1.0",
    }
    monkeypatch.setattr(install, "installed_version", versions.get)
    calls = []

    def run(command, check=False, capture_output=False):
        calls.append(command[command.index("--disable-pip-version-check") + 1 :])
        versions["jax"] = "0.11.2"
        return subprocess.CompletedProcess(command, returncode=len(calls) == 1)

    monkeypatch.setattr(install.subprocess, "run", run)
    requirements = [
        Requirement(line) for line in ("jax>=0.10,<0.12", "opencv-python-headless>=4.12,<6", "av>=18.1,<20")
    ]
    install.install(requirements)
    kept = ["opencv-contrib-python==4.12.0.88", "av==18.1.0", "numpy==2.0.2"]
    # The second call follows since the first one found no solution.
    assert calls == [["jax<0.12,>=0.10", *kept], ["jax<0.12,>=0.10", "opencv-contrib-python<6,>=4.12", "av<20,>=18.1"]]
    first, second = capsys.readouterr().out.splitlines()
    assert "Kept: opencv-contrib-python 4.12.0.88, av 18.1.0, numpy 2.0.2. To install: jax" in first
    assert "may replace" in second
    calls.clear()
    install.install(requirements)
    assert calls == [] and "To install: nothing." in capsys.readouterr().out


@pytest.mark.quick
def test_the_install_cell_says_when_a_loaded_package_was_replaced(monkeypatch, capsys):
    install = load_install()
    versions = {"numpy": "2.0.2"}
    monkeypatch.setattr(install, "installed_version", versions.get)

    def run(command, check=False, capture_output=False):
        versions["numpy"] = "2.4.6"
        return subprocess.CompletedProcess(command, returncode=0)

    monkeypatch.setattr(install.subprocess, "run", run)
    install.install([Requirement("jax>=0.10")])
    assert capsys.readouterr().out.endswith("because these packages were replaced: numpy.\n")


@pytest.mark.quick
def test_the_install_cell_asks_for_the_plugin_on_a_machine_with_a_gpu(monkeypatch):
    install = load_install()
    versions = {"jax": "0.11.2"}
    monkeypatch.setattr(install, "installed_version", versions.get)
    for gpu, plugin, missing in [
        (False, None, False),
        (True, None, True),
        (True, "0.11.2", False),
        (True, "0.10.2", True),
    ]:
        versions["jax-cuda12-plugin"] = plugin
        (jax,) = (r for r in install.read_requirements(ROOT / "requirements.txt", gpu) if r.name == "jax")
        assert (not install.found(jax)) == missing


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    data = render(tmp_path / "data")
    safetensors.numpy.save_file({name: draw(name, shape) for name, shape in VIT.items()}, tmp_path / "vit.safetensors")
    small = {
        "data.source": "csv",
        "data.root": str(data),
        "data.frames": 4,
        "data.size": 32,
        "data.test_short_side": 34,
        "data.short_side": [34, 36],
        "data.workers": 0,
        "data.max_bad_fraction": 0.1,
        "model.patch_size": 16,
        "model.width": WIDTH,
        "model.heads": 1,
        "model.depth": 1,
        # The normalisation of the ViT, so that both runs of MEViT compile the same programs.
        "model.mean": [0.485, 0.456, 0.406],
        "model.std": [0.229, 0.224, 0.225],
        "train.total_steps": 4,
        "train.batch_size": 4,
        "train.log_every_steps": 2,
        "train.eval_every_steps": 4,
        "checkpoint.every_steps": 4,
        "optim.warmup_steps": 1,
        "eval.clips": 1,
        "eval.batch_size": 8,
        "eval.on_bad": "skip",
    }
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
    for name, value in {
        "NOTEBOOK_FIELDS": json.dumps({"mevit": small | {"model.motion_blocks": 1}, "havit": small}),
        "NOTEBOOK_WEIGHTS": str(tmp_path / "vit.safetensors"),
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "XDG_CACHE_HOME": str(CACHE),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax-notebook"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("execute_result", "display_data")
    ]
    assert sum("image/png" in data for data in shown) == 5
    assert any("video/mp4" in data.get("text/html", "") for data in shown)
    best = next(data["text/plain"] for data in shown if data["text/plain"].startswith("[('"))
    assert best.count("(") == 5
    assert "'loaded'" in shown[-1]["text/plain"] and (tmp_path / "runs" / "notebook_vit" / "init.json").exists()
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
