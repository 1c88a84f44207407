"""The command `python -m benchmarks.all`, and the benchmark of models that it runs on GPUs and TPUs."""

import importlib
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import pytest
from command import one_sentence
from house import ROOT

from benchmarks import all as benchmarks_all
from benchmarks import attention, dictionary, models, segments
from vidformers.attention import fused
from vidformers.inference.timeline.segments import Segment
from vidformers.parallel.peak import PEAKS

quick = pytest.mark.quick
ARGUMENTS = dict(modes="train,eval", batch=8, steps=3, dtype="bfloat16", minutes=0.0, depth=1, image_size=32)


@pytest.fixture
def arguments():
    return SimpleNamespace(**ARGUMENTS)


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_prints_one_object_with_the_machine_and_what_was_skipped(tmp_path):
    command = [sys.executable, "-m", "benchmarks.all", "--quick", "--only=peak", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"device", "devices", "versions", "commit", "date", "seconds"} <= result.keys()
    assert result["quick"] and result["platform"] == "cpu" and "jax" in result["versions"]
    assert [line["benchmark"] for line in result["results"]] == ["peak"]
    assert result["results"][0]["flops_per_second"] > 0
    reasons = {line["benchmark"]: line["skipped"] for line in result["skipped"]}
    assert "--only=models runs it" in reasons["models"] and "--peer-python" in reasons["comparison with Hugging Face"]
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text()) == result


@quick
@pytest.mark.parametrize(
    "name, arguments",
    [("growth", []), ("picture", []), ("all", []), ("tables.__main__", ["mevit/1"]), ("campaign.__main__", [])],
)
def test_an_output_that_cannot_be_written_is_known_before_the_work(name, arguments, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    module = importlib.import_module(f"benchmarks.{name}")
    arguments = [*arguments, f"--out={tmp_path}/file/results/name"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(subprocess, "Popen", None)  # no benchmark starts
    with pytest.raises(SystemExit) as ended:
        module.main(*([arguments] if name == "tables.__main__" else []))
    sentence = one_sentence(capsys.readouterr().err)
    assert ended.value.code == 2 and "--out=" in sentence and f"{tmp_path}/file is not a folder" in sentence


@quick
def test_a_benchmark_that_fails_is_reported_and_the_others_continue(tmp_path, monkeypatch):
    line = {"benchmark": "first", "value": 1, "device": "cpu"}
    skip = {"benchmark": "first", "config": "b", "skipped": "It is too large."}
    (tmp_path / "first.py").write_text(f"print('words')\nprint({json.dumps(line)!r})\nraise SystemExit(3)\n")
    (tmp_path / "second.py").write_text(f"print({json.dumps(skip)!r})\n")
    monkeypatch.setattr(benchmarks_all, "ROOT", tmp_path)
    commands = {"first": ["first"], "second": ["second"]}
    measured, skipped = benchmarks_all.measure(commands, tmp_path / "lines.jsonl", "abc")
    assert measured == [line | {"commit": "abc"}]
    assert skipped == [{"benchmark": "first", "skipped": "It ended with status 3 after 1 lines."}, skip]
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 2


@quick
def test_an_accelerator_measures_every_model_in_bfloat16_within_the_minutes():
    commands = benchmarks_all.measurements(True, None, 10.0)
    chosen = benchmarks_all.selection(commands, None, True)
    assert tuple(chosen) == benchmarks_all.ACCELERATOR
    assert sorted(benchmarks_all.MODELS.split(",")) == sorted(models.CONFIGS)
    assert {"--dtype=bfloat16", "--modes=train,eval", "--minutes=7"} <= set(chosen["models"])
    left_out = {line["benchmark"] for line in benchmarks_all.not_selected(commands, chosen, "python")}
    assert left_out == commands.keys() - chosen.keys() and left_out
    assert benchmarks_all.selection(commands, "growth", True) == {"growth": ["benchmarks.growth"]}
    with pytest.raises(SystemExit, match="there is no speed"):
        benchmarks_all.selection(commands, "speed", True)


@quick
def test_a_cpu_runs_all_benchmarks():
    commands = benchmarks_all.measurements(False, "python", 10.0)
    assert benchmarks_all.selection(commands, None, False) == commands
    assert commands["models"] == ["benchmarks.models"] and "timesformer_train" in commands


class Step:
    """A step of 0.5 s, which fits in memory with at most `largest` clips."""

    largest, temporary_bytes, compile_seconds = 2, 2**20, 1.0
    compiled = SimpleNamespace(memory_analysis=lambda: None)

    def __init__(self, name, batch, **options):
        if batch > self.largest:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def __call__(self):
        return 0.5


@quick
def test_the_batch_is_halved_until_the_step_fits(arguments, capsys, monkeypatch):
    monkeypatch.setattr(models, "MODES", {"train": (Step, 3)})
    monkeypatch.setitem(PEAKS, "cpu", 1e12)
    models.measure("vit_b16", "train", arguments)
    (line,) = printed(capsys)
    assert (line["config"], line["mode"], line["batch"], line["clips_per_second"]) == ("vit_b16", "train", 2, 4.0)
    assert line["share_of_published_peak"] == pytest.approx(6 * line["macs_per_view"] * 4.0 / 1e12)


@quick
def test_a_model_that_does_not_fit_with_one_clip_is_skipped(arguments, capsys, monkeypatch):
    monkeypatch.setattr(models, "MODES", {"eval": (Step, 1)})
    monkeypatch.setattr(Step, "largest", 0)
    models.measure("vit_b16", "eval", arguments)
    assert printed(capsys) == [models.skipped("vit_b16", "eval", "One clip does not fit in memory.")]


@quick
def test_a_model_is_stopped_when_the_time_is_over_and_later_ones_do_not_start(arguments, capsys):
    for deadline in (0.0, 0.1):
        models.measure_apart("vit_b16", arguments, time.monotonic() + deadline)
        expected = [models.skipped("vit_b16", mode, "The time was over.") for mode in ("train", "eval")]
        assert printed(capsys) == expected


def test_a_model_that_fails_has_a_line_for_each_mode(arguments, capsys):
    models.measure_apart("mevit_b16", arguments, None)  # has more motion blocks than the one layer
    reason = "Its process ended with status 1."
    assert printed(capsys) == [models.skipped("mevit_b16", mode, reason) for mode in ("train", "eval")]


@quick
def test_einsums_are_not_measured_under_the_name_of_another_backend(monkeypatch, capsys):
    monkeypatch.setitem(attention.GROUPS, "frame", (1, 3, 3))
    monkeypatch.setattr(fused, "_xla_supports", lambda q, key_values: False)
    attention.measure("frame", batch=1, rounds=1, dtype="float32")
    (line,) = printed(capsys)
    assert set(line["seconds"]) == {"einsum"}
    assert line["skipped_backends"]["xla"] == "xla does not support this attention: einsum replaces it"
    assert "needs an NVIDIA GPU" in line["skipped_backends"]["cudnn"] or "dtype" in line["skipped_backends"]["cudnn"]


def test_the_share_of_a_dictionary_at_the_start(capsys, monkeypatch):
    small = [
        f"--config.model.{field}"
        for field in ("width=32", "heads=2", "depth=1", "dictionary=16", "dictionary_per=model")
    ]
    command = ["--config=configs/demo.py:havit", *small, "--clips=1"]
    shares = dictionary.shares

    def without_queries(graph, parameters, video):
        """All logits are 0 then, and all keys have the same weight."""
        zero = jax.tree_util.tree_map_with_path(lambda path, x: x * ("qkv" not in str(path)), parameters)
        return shares(graph, zero, video)

    monkeypatch.setattr(dictionary, "shares", without_queries)
    assert dictionary.main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["shares"]
    assert found["Time"] == pytest.approx(16 / (16 + 8), abs=1e-4)  # eight frames
    assert found["Frame"] == pytest.approx(16 / (16 + 16), abs=1e-4)  # sixteen patches
    assert dictionary.main([*command, "--config.model.hybrid=simplified"]) == 2
    assert "Set --config.model.dictionary=112" in capsys.readouterr().err


@quick
def test_stretches_of_a_list_and_their_distances_to_segments(tmp_path):
    rows = ["b.mp4,run,2,4", "a.mp4,run,3,6", "a.mp4,jump,0,3", "a.mp4,run,6.04,8", "b.mp4,run,9,11"]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,start,end", *rows]), encoding="utf-8")
    stretches = segments.read_stretches(tmp_path)
    assert stretches == {
        "a.mp4": [("jump", 0, 3), ("run", 3, 8)],
        "b.mp4": [("run", 2, 4), ("run", 9, 11)],
    }
    found = [Segment("run", 2.5, 6, 0.9, 0.9), Segment("run", 7, 8.25, 0.9, 0.9)]
    assert segments.distances(stretches["a.mp4"], found) == [None, None, 0.5, 0.25]
