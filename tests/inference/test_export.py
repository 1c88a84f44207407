"""An exported model answers elsewhere as it does here, and a run that starts from it has all of its parameters."""

import json
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax.export
import numpy as np
import pytest
import safetensors.numpy
from command import ROOT, Run, arguments
from flax import nnx
from tiny import SMALL, TINY, clips, quick_jit, randomise

import main
import vidformers.inference.export
from configs.sheet import SheetError
from vidformers import MODELS, ConfigError, build, load
from vidformers.inference.export import write_export
from vidformers.inference.predictor import Predictor
from vidformers.pretrained import Init
from vidformers.pretrained import load as load_weights
from vidformers.pretrained.fit import flatten
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.optim import make_optimizer
from vidformers.training.step import initial_state
from vidformers.training.workdir import describe_run, write_run_json

NAMES = ("run", "walk", "jump", "sit_down", "fall")
TIGHT = dict(rtol=0, atol=1e-5)


# Still smaller, for they take longest to trace and to compile.
FEWER = {"stat": dict(depth=2, depths=(1, 1)), "cvt": dict(depth=3, depths=(1, 1, 1))}


def section(name, **options):
    own = SMALL.get(name, {}) | FEWER.get(name, {})
    return dict(name=name, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)) | TINY | own | options


@cache
def shell(name, **options):
    """(graph, make_model, random parameters) of a small model."""
    make_model = partial(build, **section(name, **options))
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    return graph, make_model, randomise(nnx.to_pure_dict(state))


def put(folder, name, **options):
    """Exports a small model with random parameters; returns the folder."""
    about = {
        "model": section(name, **options),
        "id2label": dict(enumerate(NAMES)),
        "step": 7,
        "views": {"average": "probabilities"},
    }
    write_export(folder, *shell(name, **options)[1:], about)
    return str(folder)


@pytest.fixture
def without_program(monkeypatch):
    """Spares the tests that do not run it the tracing of the program."""

    class Program:
        def serialize(self):
            return b""

    monkeypatch.setattr(vidformers.inference.export, "export_program", lambda model: Program())


@pytest.mark.parametrize(
    "name, options", [*((name, {}) for name in MODELS), ("vtn", dict(backbone="resnet", stem=4, depths=(1, 1)))]
)
def test_every_model_answers_as_here_at_any_batch_and_is_read_back_whole(name, options, tmp_path):
    folder = put(tmp_path / "out", name, **options)
    exported = jax.export.deserialize(bytearray(Path(folder, "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert Path(folder, "model.stablehlo").stat().st_size < 400_000, "parameters are arguments, not constants"
    given = safetensors.numpy.load_file(Path(folder, "model.safetensors"))
    asked = json.loads(Path(folder, "config.json").read_text())["inputs"]
    video = clips(3)
    index = np.cumsum(np.random.default_rng(0).integers(1, 9, video.shape[:2], np.int32), axis=1, dtype=np.int32)
    assert ("index" in asked) == (name == "vtn") and asked["video"]["shape"] == list(video.shape[1:])
    graph, make_model, parameters = shell(name, **options)
    expected = quick_jit(lambda p, video, index: nnx.merge(graph, p)(video, index=index))(parameters, video, index)
    inputs = [video, index] if "index" in asked else [video]
    run = quick_jit(lambda given, *inputs: [exported.call(given, *(x[:count] for x in inputs)) for count in (3, 1)])
    for logits in run(given, *inputs):
        np.testing.assert_allclose(logits, expected[: len(logits)], **TIGHT)

    pretrained = load_weights(Init(weights=folder), make_model, NAMES)
    assert pretrained.counts == {"loaded": len(given), "resized": 0, "new": 0, "unused": 0} and not pretrained.remarks
    for path, leaf in flatten(parameters).items():
        np.testing.assert_array_equal(pretrained.values[path], leaf)


# Our own layout


def test_classes_of_other_names_draw_the_head(tmp_path, without_program):
    folder, (_, make_model, parameters) = put(tmp_path / "out", "vit"), shell("vit")
    turned = load_weights(Init(weights=folder), make_model, ("Fall", "sit down", "jump", "walk", "run"))
    np.testing.assert_array_equal(turned.values["head", "kernel"], parameters["head"]["kernel"][:, ::-1])
    others = ("run", "walk", "jump", "sit down", "climb")
    with pytest.raises(ConfigError, match=r"as many classes as the model, but they are others: init\.head=as_is"):
        load_weights(Init(weights=folder), make_model, others)
    drawn = load_weights(Init(weights=folder), partial(make_model, num_classes=3), others[:3])
    assert [row.parameter for row in drawn.rows if row.how == "new"] == ["head.bias", "head.kernel"]
    assert drawn.counts["unused"] == 0 and drawn.remarks == ["The head of 5 classes is left."]


@pytest.mark.parametrize(
    "name, tables",
    [
        ("timesformer", ["encoder.embedding.space", "encoder.embedding.time"]),
        ("vit", ["encoder.embedding.space"]),
        ("stat", ["encoder.embedding.space", "encoder.embedding.time"]),
        ("cvt", ["encoder.embeddings.2.time"]),
        ("swin", []),
        ("vtn", ["encoder.encoder.embedding.space"]),
    ],
)
def test_other_frames_and_another_image_size_resize_the_positions(name, tables, tmp_path, without_program):
    folder, (_, make_model, parameters) = put(tmp_path / "out", name), shell(name)
    pretrained = load_weights(Init(weights=folder), partial(make_model, frames=8, image_size=64), NAMES)
    assert [row.parameter for row in pretrained.rows if row.how == "resized"] == tables
    before, after = flatten(parameters), {".".join(map(str, path)): table for path, table in pretrained.values.items()}
    for path, table in before.items():
        found = after[".".join(map(str, path))]
        if path[-1] == "space":
            np.testing.assert_array_equal(found[0], table[0])
        if found.shape != table.shape:  # an interpolation keeps the mean of a table, but for its edges
            np.testing.assert_allclose(found[1:].mean(0), table[1:].mean(0), atol=0.3)


def test_a_table_over_space_and_time_is_resized_in_both(tmp_path, without_program):
    folder = put(tmp_path / "out", "joint", positions="joint")
    _, make_model, parameters = shell("joint", positions="joint")
    pretrained = load_weights(Init(weights=folder), partial(make_model, frames=8, image_size=64), NAMES)
    at = ("encoder", "embedding", "space")
    table, found = flatten(parameters)[at], pretrained.values[at]
    in_time = jax.image.resize(table[1:].reshape(4, 4, 4, -1), (8, 4, 4, table.shape[1]), "linear")
    expected = np.stack([jax.image.resize(frame, (8, 8, table.shape[1]), "cubic") for frame in in_time])
    np.testing.assert_allclose(found[1:].reshape(expected.shape), expected, atol=1e-5)
    np.testing.assert_array_equal(found[0], table[0])


@pytest.mark.parametrize(
    "name, options, init, sentence",
    [
        (
            "tokenshift",
            {},
            {},
            r"trained with model\.name='vit', and here it is 'tokenshift'; init\.allow=\"\('name',\)",
        ),
        ("swin", {}, {}, r"model\.name='vit', and here it is 'swin'"),
        ("swin", {}, dict(allow=("name", "width", "heads", "depth", "patch_size")), "is missing"),
        ("vit", dict(heads=2), {}, r"model\.heads=4, and here it is 2; init\.allow=\"\('heads',\)"),
        ("vit", dict(mean=(0.5, 0.5, 0.5)), {}, r"\('normalisation',\)"),
        ("vit", dict(depth=3), dict(allow=("depth",)), r"has the shape \(2, 32\), where the model's has \(3, 32\)"),
        ("vit", dict(dictionary=2), {}, "'encoder.stages.0.layers.sublayers.0.dictionary.keys' is missing"),
        ("vit", {}, dict(channels="bgr"), r"init\.channels must be rgb"),
    ],
)
def test_another_model_is_refused_in_a_sentence(name, options, init, sentence, tmp_path, without_program):
    folder, make_model = put(tmp_path / "out", "vit"), shell(name, **options)[1]
    with pytest.raises(ConfigError, match=sentence) as error:
        load_weights(Init(weights=folder, **init), make_model, NAMES)
    assert folder in str(error.value) and "\n" not in str(error.value)


def test_a_field_that_differs_may_be_allowed(tmp_path, without_program):
    folder = put(tmp_path / "out", "vit")
    allowed = load_weights(Init(weights=folder, allow=("name",)), shell("msca")[1], NAMES)
    assert allowed.counts["new"] == 0
    Path(folder, "config.json").unlink()
    bare = load_weights(Init(weights=folder, head="draw"), shell("vit")[1])
    assert any("No config.json" in remark for remark in bare.remarks)


def test_a_folder_that_is_there_or_a_write_that_fails(tmp_path, monkeypatch, without_program):
    out = tmp_path / "out"
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "stray").write_text("of an export that was killed")
    for what in ("rename", "replace"):
        with monkeypatch.context() as patched:

            def fail(self, target):
                raise OSError(28, "No space left on device")

            patched.setattr(Path, what, fail)
            with pytest.raises(OSError, match="No space"):
                put(out, "vit")
        assert list(tmp_path.iterdir()) == []
    out.mkdir()
    put(out, "vit")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "model.stablehlo",
        "run.py",
    ]
    with pytest.raises(ConfigError, match="is there already and is no empty folder"):
        put(out, "vit")


def test_the_flags_of_a_mode():
    for flags, sentence in (
        (["--mode=export"], "--mode=export needs --out"),
        (["--out=x"], "--out is a flag of --mode=predict or --mode=explain or --mode=export"),
        (["--mode=export", "--out=x", "--video=y"], "--video is a flag of --mode=predict"),
        (["--mode=nothing"], "--mode=nothing must be one of train, eval"),
    ):
        with pytest.raises(SheetError, match=sentence):
            main.parse(["main.py", f"--config={ROOT}/configs/demo.py", *flags])


# As a user does it


CLASSES = [f"motion {number}" for number in range(10)]


# Runs a program that may import nothing but what is named here and what Python brings along.
ALONE = """
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
named = {"jax", "jaxlib", "jax_plugins", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy"}
class Only:
    def find_spec(name, path=None, target=None):
        root = name.partition(".")[0]
        if root in named | sys.stdlib_module_names or root.startswith("_sysconfigdata"):
            return PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Only]
sys.argv = sys.argv[1:]
module = runpy.run_path(sys.argv[0], run_name="__main__")
import numpy
run, config = module["load"]()
numpy.save("logits.npy", run(numpy.load(sys.argv[1])))
assert not {"vidformers", "flax", "safetensors", "einops"} & set(sys.modules)
"""


def command(workdir, out, **fields):
    fields = {"optim.ema_decay": 0.5, "data.flip_swaps": "()", **fields}
    return [*arguments("nowhere", workdir, fields, mode="export"), f"--out={out}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run at step 4, as training leaves it, whose moving average is another than its parameters."""
    workdir = tmp_path_factory.mktemp("trained")
    config, *_ = main.parse(["main.py", *command(workdir, "out")])
    optimizer, _ = make_optimizer(4, 4, **config["optim"])
    state = quick_jit(partial(initial_state, partial(build, **config["model"]), optimizer, 0.5, 0))()
    state = state._replace(ema=randomise(state.ema))
    with Checkpoints(workdir, **config["checkpoint"]) as checkpoints:
        checkpoints.save(4, state, {})
    write_run_json(
        workdir, describe_run(config, {"classes": CLASSES, "train": "digest of train", "val": "digest of val"})
    )
    return workdir


@pytest.fixture(scope="module")
def out(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    said = Run(command(trained, folder)).finish()
    assert f"{folder}/README.md" in said
    return folder


def test_what_an_export_says_and_holds(trained, out):
    config, run = json.loads((out / "config.json").read_text()), json.loads((trained / "run.json").read_text())
    assert config["id2label"] == {str(label): name for label, name in enumerate(CLASSES)}
    assert (config["step"], config["commit"], config["data"]["val"]) == (4, run["commit"], "digest of val")
    assert config["frames"]["sampling"] == "uniform" and config["frames"]["test_short_side"] == 18
    assert config["model"]["width"] == 16 and config["image_mean"] == [0.5, 0.5, 0.5]
    model = load(trained)
    pretrained = load_weights(Init(weights=str(out)), model.make_model, CLASSES)
    average = flatten(randomise(model.parameters))
    assert pretrained.counts == {"loaded": len(average), "resized": 0, "new": 0, "unused": 0}
    for path, leaf in average.items():
        np.testing.assert_array_equal(pretrained.values[path], leaf)


def test_weights_predict_without_a_run(trained, out, tmp_path):
    model = load(trained)
    config, *_ = main.parse(["main.py", *command(tmp_path / "none", "x", **{"init.weights": out})])
    published = Predictor(config, tmp_path / "none")
    assert published.classes == tuple(CLASSES) and published.step == 0
    for path, leaf in flatten(model.parameters).items():
        np.testing.assert_array_equal(flatten(published.parameters)[path], leaf)
    config["init"]["weights"] = str(out / "model.safetensors")  # config.json beside it names the classes
    config["model"]["depth"] = 2
    with pytest.raises(ConfigError, match=r"model\.depth=1, and here it is 2"):
        Predictor(config, tmp_path / "none")


def test_it_runs_with_jax_numpy_and_flatbuffers_alone(trained, out, tmp_path):
    video = clips(2, size=16)
    np.save(tmp_path / "views.npy", video)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(out / "run.py"), str(tmp_path / "views.npy")],
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    model = load(trained)
    graph, _ = nnx.split(nnx.eval_shape(lambda: model.make_model(rngs=nnx.Rngs(0))))
    expected = np.asarray(quick_jit(lambda p: nnx.merge(graph, p)(video))(model.parameters))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, **TIGHT)
    shares = np.exp(expected - expected.max(axis=1, keepdims=True))
    best = model.best((shares / shares.sum(axis=1, keepdims=True)).mean(axis=0))
    assert [line.strip().partition("%  ")[2] for line in done.stdout.splitlines()] == [name for name, _ in best]


def test_a_config_of_another_run_is_refused(trained, tmp_path):
    flags = command(trained, tmp_path / "out", **{"model.mean": "(0.1, 0.1, 0.1)"})
    config, workdir, _, _, given = main.parse(["main.py", *flags])
    with pytest.raises(ConfigError, match=r"a run with model\.mean=\[0\.5, 0\.5, 0\.5\], not \[0\.1, 0\.1, 0\.1\]"):
        vidformers.inference.export.export(config, workdir, **given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="is the folder of a run: --mode=export makes weights of it"):
        load_weights(Init(weights=str(trained)), shell("vit")[1])
