"""A run that an earlier version was killed in continues as that version continued it: tests/goldens/run/README.md."""

import json
import shutil

import pytest
from command import ROOT, Run, checkpoint, rows

from input_pipeline import Pipeline

GOLDEN = ROOT / "tests" / "goldens" / "run"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def as_tuples(tree):
    """Returns a tree from JSON with tuples in place of lists."""
    if isinstance(tree, dict):
        return {name: as_tuples(child) for name, child in tree.items()}
    return tuple(map(as_tuples, tree)) if isinstance(tree, list) else tree


@pytest.mark.quick
def test_the_order_of_the_data_is_that_of_the_earlier_version():
    config = as_tuples(json.loads((GOLDEN / "workdir" / "run.json").read_text())["config"])
    pipeline = Pipeline(**config["data"] | {"root": str(GOLDEN / "data")})
    batches = pipeline.train_batches(
        batch_size=config["train"]["batch_size"], seed=config["seed"], start=EXPECTED["start"]
    )
    assert [next(batches)["id"].tolist() for _ in EXPECTED["order"]] == EXPECTED["order"]
    batches.close()


def test_metrics_and_names_in_checkpoints_are_those_of_the_earlier_version(tmp_path):
    workdir = shutil.copytree(GOLDEN / "workdir", tmp_path / "workdir")
    data = shutil.copytree(GOLDEN / "data", tmp_path / "data")
    fields = [*json.loads((GOLDEN / "arguments.json").read_text()), f"--config.data.root={data}"]
    output = Run([f"--config={ROOT}/configs/demo.py:mevit", f"--workdir={workdir}", *fields]).finish()
    assert f"Continues {workdir} at step 6 of 30." in output
    metrics = rows(workdir)
    assert [row.keys() for row in metrics] == [row.keys() for row in EXPECTED["metrics"]]
    for row, expected in zip(metrics, EXPECTED["metrics"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5), f"step {expected['step']}"
    (arrays, _), (golden_arrays, _) = checkpoint(workdir, 30), checkpoint(GOLDEN / "workdir", 6)
    assert {name: array.shape for name, array in arrays.items()} == {
        name: array.shape for name, array in golden_arrays.items()
    }
    assert any(name.startswith("['optimizer']") for name in arrays)
    assert any(name.startswith("['average']") for name in arrays)
