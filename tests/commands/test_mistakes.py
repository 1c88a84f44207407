"""A mistake ends with status 2 and one sentence that names the field or file, and overwrites nothing."""

import contextlib
import json
import shutil
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from command import BAD, ROOT, Run, arguments, checkpoint, one_sentence, render, rows

import main
from benchmarks.campaign import fields as campaign_fields
from configs.loading import FlagError, load, override
from input_pipeline import DataError, check, prepare, show
from input_pipeline.outputs import output_file
from vidformers.errors import ConfigError
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.reports import data_notes
from vidformers.training.setup import set_up
from vidformers.training.workdir import describe_run, open_workdir, write_run_json


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns a folder with clips, manifests that have one mistake each, and videos that cannot be decoded."""
    root = render(tmp_path_factory.mktemp("mistakes") / "clips")
    (root / "zero.mp4").touch()
    (root / "text.mp4").write_text("not a video")
    for name, text in MANIFESTS.items():
        (root / name).write_text(text)
    return root


MANIFESTS = {
    "empty.csv": "",
    "header.csv": "path,label\n",
    "columns.csv": "path,label\ntrain/000000.mp4;1\n",
    "word.csv": "path,label\ntrain/000000.mp4,run\n",
    "range.csv": "path,label\ntrain/000000.mp4,10\n",
    "gone.csv": "path,label\ntrain/000000.mp4,1\ntrain/absent.mp4,0\n",
    "few.csv": "train/000000.mp4,0\n",
    "zero.csv": "zero.mp4,0\nval/000000.mp4,9\n",
    "text.csv": "val/000000.mp4,9\ntext.mp4,0\n",
}

MISTAKES = {
    "a misspelt field": (["--config.optim.rl=1"], "did you mean --config.optim.lr?"),
    "a misspelt section": (["--config.optimizer.lr=1"], "--config.optimizer.lr"),
    "a word in place of a number": (["--config.train.batch_size=many"], "--config.train.batch_size=many"),
    "a fraction in place of an integer": (["--config.train.batch_size=8.5"], "--config.train.batch_size=8.5"),
    "none for a field that needs a value": (["--config.optim.lr=none"], "--config.optim.lr=none"),
    "the model's name": (["--config.model.name=mevit"], "--config.model.name"),
    "a patch size that does not divide the frame": (["--config.model.patch_size=7"], "patch_size=7"),
    "heads that do not divide the width": (["--config.model.heads=3"], "heads=3"),
    "no classes": (["--config.data.num_classes=0"], "data.num_classes"),
    "a batch that cannot be divided": (["--config.mesh.data=-1", "--config.train.accumulate=7"], "train.batch_size=8"),
    "too few devices": (["--config.mesh.fsdp=16", "--config.mesh.data=2"], "mesh.data=2 x mesh.fsdp=16"),
    "a number of crops that is not supported": (["--config.eval.crops=2"], "eval.crops"),
    "an unknown metric": (["--config.checkpoint.best=val/top2@1x1"], "checkpoint.best=val/top2@1x1"),
    "no checkpoint to keep": (["--config.checkpoint.keep=0"], "checkpoint.keep=0"),
    "a missing list of training videos": (["--config.data.train=absent.csv"], "absent.csv"),
    "an unknown module": (["--config.optim.frozen=('backbone',)"], "optim.frozen='backbone'"),
    "two durations": (["--config.train.total_epochs=1.0"], "train.total_steps=12 and train.total_epochs=1.0"),
    "a warm-up as long as the run": (["--config.optim.warmup_steps=12"], "Set optim.warmup_steps=1, a tenth"),
    "a backend of another device": (["--config.model.backend=pallas"], "model.backend=pallas needs a TPU"),
    "a missing manifest": (["--config.data.val=absent.csv"], "absent.csv"),
    "a missing class file": (["--config.data.classes=absent.txt"], "absent.txt"),
    "an empty manifest": (["--config.data.val=empty.csv"], "empty.csv"),
    "a manifest with nothing but a header": (["--config.data.val=header.csv"], "header.csv"),
    "one column": (["--config.data.val=columns.csv"], "columns.csv line 2"),
    "a word in place of a label": (["--config.data.val=word.csv"], "word.csv line 2"),
    "a label out of range": (["--config.data.val=range.csv"], "range.csv line 2: label 10"),
    "a missing video": (["--config.data.val=gone.csv"], "gone.csv line 3"),
    "several labels for a source of one": (
        ["--config.data.labels=many", "--config.data.source=folders"],
        "data.labels='many' reads lists with several labels a video, but data.source='folders' gives one",
    ),
    "a power above 1": (["--config.train.class_weights=2.0"], "train.class_weights=2.0 must be from 0 to 1"),
    "more classes than labels": (["--config.data.train=few.csv"], "data.num_classes=1"),
    "fewer classes than labels": (["--config.data.num_classes=5"], "out of range for data.num_classes=5"),
}

TRAINING_ONLY = {
    "a missing list of training videos",
    "two durations",
    "a backend of another device",
    "a warm-up as long as the run",
    "more classes than labels",
    "a batch that cannot be divided",
}


@pytest.mark.parametrize(
    "mode, mistake",
    [
        (mode, mistake)
        for mode in ("train", "eval")
        for mistake in MISTAKES
        if mode == "train" or mistake not in TRAINING_ONLY
    ],
)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(mistake, mode, data, tmp_path, capsys):
    flags, words = MISTAKES[mistake]
    if mode == "eval" and mistake == "no checkpoint to keep":
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main.main(["main.py", *arguments(data, tmp_path / "run", mode=mode), *flags]) == 2
    assert words in one_sentence(capsys.readouterr().err)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.quick
@pytest.mark.parametrize(
    "command, words",
    [
        (["--config=configs/onw.py"], "configs/onw.py does not exist; did you mean configs/own.py?"),
        (["--config=tests"], "tests"),
        ([f"--config={ROOT}/README.md"], "README.md"),
        (["--config=configs/base.py"], "get_config"),
        ([f"--config={ROOT}/configs/demo.py:resnet"], "resnet"),
        ([f"--config={ROOT}/configs/mevit_b16.py:vit"], "mevit_b16.py"),
        ([f"--config={ROOT}/configs/demo.py", "--mode=fly"], "--mode=fly"),
        ([f"--config={ROOT}/configs/demo.py", "--workdri=x"], "--workdri"),
        ([f"--config={ROOT}/configs/demo.py", "train"], "'train'"),
        (["--mode=train"], "--config"),
        ([f"--config={ROOT}/configs"], "is not a file"),
        ([f"--config={ROOT}/configs/demo.py", "--workdir="], "--workdir= has no value"),
        ([f"--config={ROOT}/configs/demo.py", "--out="], "--out= has no value"),
        ([f"--config={ROOT}/configs/demo.py", "x" * 9999], "'xxx"),
        ([f"--config={ROOT}/configs/demo.py", f"--{'x' * 9999}=1"], "--xxx"),
        ([f"--config={ROOT}/configs/demo.py:vit", f"--config.{'x' * 9999}=1"], "--config.xxx"),
        ([f"--config={ROOT}/configs/demo.py:vit", f"--config.optim.lr={'x' * 9999}"], "--config.optim.lr=xxx"),
    ],
)
def test_a_wrong_flag_is_named(command, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main.main(["main.py", *command]) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert words in sentence and len(sentence) < 500


PATHS = [*(f"--{flag}" for flag in ("config", "workdir", "out", "video", "features", "keys", "beside"))]
PATHS += [f"--config.{field}" for field in ("data.root", "data.train", "data.val", "data.exclude", "data.classes")]
PATHS += ["--config.init.weights"]


@pytest.mark.quick
@pytest.mark.parametrize("path", ["gs://bucket/x", "~no-such-user/x"])
@pytest.mark.parametrize("flag", PATHS)
def test_a_flag_that_is_no_path_of_this_machine_is_refused_and_makes_no_folder(
    flag, path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main.main(["main.py", f"--config={ROOT}/configs/demo.py:vit", f"{flag}={path}"]) == 2
    assert f"vidformers: {flag}={path}" in one_sentence(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
    if flag == "--out":
        for command in (check, prepare, show):
            assert command.main([f"--config={ROOT}/configs/demo.py:vit", f"{flag}={path}"]) == 2
            assert f"vidformers: {flag}={path}" in one_sentence(capsys.readouterr().err)
        assert not list(tmp_path.iterdir())


@pytest.mark.quick
@pytest.mark.parametrize(
    "field, value", [("optim.name", "nonsense"), ("data.flip", "7"), ("eval.crops", "2"), ("mesh.fsdp", "0"),
                     ("checkpoint.keep", "0"), ("init.head", "none"), ("train.total_epochs", "-1.0"), ("seed", "-1")]
)  # fmt: skip
def test_the_summary_checks_every_section(field, value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["main.py", f"--config={ROOT}/configs/demo.py:vit", "--mode=summary", f"--config.{field}={value}"]
    assert main.main(command) == 2
    assert field in one_sentence(capsys.readouterr().err)


@pytest.mark.quick
def test_any_text_for_any_field_is_read_or_refused():
    config = load(f"{ROOT}/configs/demo.py:mevit")
    texts = ("", "none", "nan", "1e999", "9" * 400, "-1", "(", "{[]: 1}", "(" * 500 + ")" * 500, "'", "1_0", "\0")
    for name in {case.field for case in campaign_fields.cases() if case.model == "mevit"}:
        for text in texts:
            with contextlib.suppress(FlagError):
                override(config, name, text)


@pytest.mark.quick
@pytest.mark.parametrize("flags, status", [(["--help"], 0), (["--config=configs/demo.py", "--workdri=x"], 2)])
def test_help_and_unknown_flags_are_answered_before_jax_is_imported(flags, status):
    program = "import sys, main; status = main.main(sys.argv); sys.exit(100 if 'jax' in sys.modules else status)"
    done = subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(:\n", "cannot be loaded: SyntaxError"),
        ("get_config = 3\n", "defines no function get_config"),
        ("def get_config():\n    return None\n", "must return the config"),
        ("config.train.batchsize", "train.batchsize is not a field of a config; did you mean train.batch_size?"),
        ("config.verbose", "verbose is not a field of a config."),
        ("del config.eval", "lacks the field eval."),
        ("del config.data.train", "lacks the field data.train."),
        ("config.model.name", "its model cannot be found: the model after the colon must be one of"),
    ],
)
def test_a_mistake_in_a_config_file_is_named(text, words, tmp_path, capsys):
    if "get_config" not in text:
        line = text if text.startswith("del") else f"{text} = 'nonsense'"
        body = f"    config = base('vit')\n    {line}\n    return config\n"
        text = f"from configs.base import base\ndef get_config():\n{body}"
    (tmp_path / "mine.py").write_text(text)
    assert main.main(["main.py", f"--config={tmp_path}/mine.py"]) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert f"--config={tmp_path}/mine.py" in sentence and words in sentence


@pytest.mark.quick
def test_a_config_function_may_be_decorated(tmp_path):
    text = "from functools import cache\nfrom configs.base import base\nget_config = cache(lambda name: base(name))\n"
    (tmp_path / "mine.py").write_text(text)
    assert load(f"{tmp_path}/mine.py:vit").model.name == "vit"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_file_in_the_place_of_the_workdir_is_kept(mode, data, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert main.main(["main.py", *arguments(data, tmp_path / "run", mode=mode)]) == 2
    assert str(tmp_path / "run") in one_sentence(capsys.readouterr().err)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.quick
@pytest.mark.parametrize("name", ["a[b]", "a\\b", "**", "what?", "caf\udce9"])
def test_a_workdir_whose_checkpoints_could_not_be_read_again_is_refused(name, tmp_path):
    """Orbax takes the path for a pattern, so that a checkpoint lacks its arrays. TensorStore takes UTF-8 alone."""
    for path in (tmp_path / name, tmp_path / name / "run"):
        for opens in (open_workdir, partial(Checkpoints, read_only=True)):
            with pytest.raises(ConfigError, match=r": checkpoints cannot be saved or read in a folder whose path"):
                opens(path)
    assert not any(tmp_path.iterdir()) and open_workdir(tmp_path / "a $x$ {0} %d 走").is_dir()


def test_evaluating_a_folder_without_checkpoints_is_refused(data, tmp_path, capsys):
    for folder in (tmp_path / "absent", tmp_path, tmp_path / "run"):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        assert main.main(["main.py", *arguments(data, folder, mode="eval")]) == 2
        assert f"--workdir={folder}" in one_sentence(capsys.readouterr().err)


def test_an_ill_value_of_any_field_is_refused_in_one_sentence_or_works(data):
    lines = []
    results = campaign_fields.run(data, report=lines.append)
    assert not results["traceback"], "\n".join(lines)
    assert len({case.field for case in campaign_fields.cases()}) > 110
    assert len(results["accepted"]) < 10, "\n".join(lines)


def test_summary_prints_a_json_object_last(capsys):
    assert main.main(["main.py", f"--config={ROOT}/configs/demo.py:vit", "--mode=summary"]) == 0
    costs = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert costs["config"] == "demo_vit" and costs["views"] == 4
    assert 0 < costs["macs_per_view_linear"] < costs["macs_per_view"] and costs["params"] > 100_000


# Runs of these fields share one compiled training step.
SHORT = {"train.total_steps": 3, "train.eval_every_steps": "none", "data.max_bad_fraction": 1.0}


def test_evaluation_returns_the_metrics_with_which_training_ended(data, tmp_path):
    fields = {**SHORT, "eval.crops": 3}
    assert main.main(["main.py", *arguments(data, tmp_path, fields)]) == 0
    last = rows(tmp_path)[-1]
    assert last["val/videos@2x3"] == 10
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert main.main(["main.py", f"--workdir={tmp_path}", "--mode=eval"]) == 0
    evaluated = json.loads((tmp_path / "eval_2x3.json").read_text())
    assert {name: evaluated[name] for name in last} == last
    assert sum(map(sum, evaluated["confusion"])) == 10 and evaluated["skipped"] == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    command = ["main.py", f"--workdir={tmp_path}", "--mode=eval", "--part=train", "--config.eval.on_bad=skip"]
    assert main.main(command) == 0
    assert json.loads((tmp_path / "eval_train_2x3.json").read_text())["train/videos@2x3"] == 39
    assert json.loads((tmp_path / "eval_2x3.json").read_text()) == evaluated


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Returns a folder with a checkpoint of step 2, whose parameters are 0."""
    workdir = tmp_path_factory.mktemp("trained")
    config, *_ = main.parse(["main.py", *arguments(data, workdir)])
    setup = set_up(config)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), setup.abstract)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(2, state._replace(step=jnp.int32(2)), {})
    write_run_json(workdir, describe_run(config, {"train": setup.pipeline.train_manifest.digest}, {}))
    return workdir


def test_another_number_of_frames_is_accepted_if_the_parameters_allow_it(data):
    """VTN has position embeddings for clips of any length, MEViT one per frame of the clips it is trained on."""
    for name, allowed in (("vtn", True), ("mevit", False)):
        config = load(f"configs/demo.py:{name}")
        config.data.update(source="csv", root=str(data), workers=0)
        config.eval.frames = 12
        if allowed:
            assert set_up(config.to_dict()).protocol.frames == 12
            continue
        with pytest.raises(ConfigError, match=r"^eval\.frames=12 .*data\.frames=8.*\.$"):
            set_up(config.to_dict())


def test_a_batch_size_that_the_devices_do_not_divide_is_refused_in_training_alone(data, tmp_path):
    flags = {"train.batch_size": 20, "train.accumulate": 2, "mesh.data": 8, "eval.batch_size": 8}
    config, *_ = main.parse(["main.py", *arguments(data, tmp_path, flags)])
    with pytest.raises(ConfigError, match=r"^train\.batch_size=20 .*\. Use 16 or 32, .*\.$"):
        set_up(config)
    assert set_up(config, training=False).mesh.size == 8


def test_batches_of_an_evaluation_that_do_not_fit_in_memory_are_refused_before_training(data, tmp_path):
    config, *_ = main.parse(["main.py", *arguments(data, tmp_path, {"eval.batch_size": 1_000_000, "data.workers": 8})])
    for training in (True, False):
        with pytest.raises(DataError, match=r"data\.workers=8 .* MiB are available\. Lower .* or eval\.batch_size, or"):
            set_up(config, training)


@pytest.mark.parametrize("name", ["zero", "text"])
def test_a_video_that_cannot_be_decoded_ends_an_evaluation_or_is_left_out(name, data, trained, capsys):
    command = arguments(data, trained, {"data.val": f"{name}.csv"}, mode="eval")
    assert main.main(["main.py", *command]) == 2
    error = one_sentence(capsys.readouterr().err)
    assert str(data / f"{name}.mp4") in error and "eval.on_bad=skip" in error
    assert main.main(["main.py", *command, "--config.eval.on_bad=skip"]) == 0
    assert f"{name}.mp4" in capsys.readouterr().out
    assert json.loads((trained / "eval_2x1.json").read_text())["val/videos@2x1"] == 1
    answers = [json.loads(line) for line in (trained / "answers.jsonl").read_text().splitlines()]
    (bad,) = [answer for answer in answers if "error" in answer]
    assert bad["path"] == f"{name}.mp4" and len(answers) == 2 and "top" in answers[1 - bad["id"]]


def test_a_video_that_cannot_be_decoded_ends_the_evaluation_during_training(data, tmp_path, capsys):
    fields = {**SHORT, "data.val": "text.csv", "train.eval_every_steps": 2, "checkpoint.every_steps": 1}
    assert main.main(["main.py", *arguments(data, tmp_path, fields)]) == 2
    assert "text.mp4 of data.val cannot be decoded" in one_sentence(capsys.readouterr().err)
    assert checkpoint(tmp_path, 1)[0]


def test_the_checkpoint_of_another_model_is_refused(data, trained, capsys):
    for fields, words in (
        ({"model.width": 32}, "a run with model.width=16, not 32"),
        ({"optim.name": "sgd"}, "does not fit the model"),
    ):
        assert main.main(["main.py", *arguments(data, trained, fields, mode="eval")]) == 2
        assert words in one_sentence(capsys.readouterr().err)


def test_a_damaged_checkpoint_is_named(data, trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    for path in (workdir / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert main.main(["main.py", *arguments(data, workdir, mode="eval")]) == 2
    message = one_sentence(capsys.readouterr().err)
    assert f"All checkpoints in {workdir}/checkpoints are damaged: step 2: state/" in message and " 0 bytes " in message


def test_a_result_that_another_evaluation_writes_is_left_to_it(data, trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("eval_*"))
    with output_file(workdir / "eval_2x1.json"):
        assert main.main(["main.py", *arguments(data, workdir, mode="eval")]) == 2
    assert "eval_2x1.json is being written by another command" in one_sentence(capsys.readouterr().err)
    assert not (workdir / "eval_2x1.json").exists()


def test_the_program_in_its_own_process_prints_one_sentence_too(data, tmp_path):
    assert "--config.optim.rl" in Run([*arguments(data, tmp_path / "run"), "--config.optim.rl=1"]).error()
    mesh = {"mesh.fsdp": 3, "mesh.data": 2}
    assert "needs 6 devices" in Run(arguments(data, tmp_path / "run", mesh)).error()
    assert not (tmp_path / "run").exists()
    assert (data / BAD).stat().st_size == 500


def test_remarks_on_the_data_are_logged_at_the_start(data, tmp_path, capsys):
    fields = {**SHORT, "data.val": "train.csv", "data.test_short_side": 64}
    config, *_ = main.parse(["main.py", *arguments(data, tmp_path, {**fields, "train.batch_size": 64})])
    setup = set_up(config)
    shared, batch, crops, few = (
        next(line for line in setup.remarks if words in line) for words in ("also", "larger than", "crop", "fewer than")
    )
    assert "40 of 40 videos" in shared and "train.batch_size=64" in batch and "data.test_short_side=64" in crops
    assert few.startswith("Classes with fewer than 10 training videos: ") and "data.balance" not in few
    assert list(data_notes(setup, tmp_path))[: len(setup.remarks)] == list(setup.remarks)
    assert set_up(config, training=False).remarks == ()
