"""The notebook runs from top to bottom, and is stored without outputs."""

import json

import nbclient
import nbformat
import pytest
import safetensors.numpy
from command import CACHE, ROOT, render
from drawn import draw
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
