"""An export computes the same logits as the model, and a run that starts from it has all of its parameters."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import jax.export
import numpy as np
import pytest
import safetensors.numpy
from command import ROOT, Run, arguments
from flax import nnx
from schemes import SCHEMES, scheme_model
from tiny import SMALL, TINY, clips, quick_jit, randomise

import main
import vidformers.inference.export
from configs.loading import FlagError
from input_pipeline.sampling import Uniform
from vidformers import MODELS, ConfigError, build, load
from vidformers.inference.export import write_export
from vidformers.inference.predictor import Predictor, load_export
from vidformers.parallel import target
from vidformers.pretrained import Init
from vidformers.pretrained import load as load_weights
from vidformers.pretrained.assign import flatten
from vidformers.training.checkpoint import Checkpoints
from vidformers.training.optim import make_optimizer
from vidformers.training.run_weights import open_run
from vidformers.training.step import initial_state
from vidformers.training.workdir import describe_run, write_run_json

NAMES = ("run", "walk", "jump", "sit_down", "fall")
TIGHT = dict(rtol=0, atol=1e-5)
NORMALISATION = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
# Fewer layers than in other tests: these models take longest to trace and to compile.
FEWER_LAYERS = {"stat": dict(depth=2, depths=(1, 1)), "cvt": dict(depth=3, depths=(1, 1, 1))}
ENTRIES = {f"scheme {name}": entry for name, entry in SCHEMES.items()}
# Models with parts that no registered scheme has; the other models differ from these in their schemes alone.
MORE_PARTS = ("havit", "tokenshift", "vtn", "swin", "cvt", "stat")


def section(name, **options):
    """Returns the section `model` of a tiny model."""
    return dict(name=name) | NORMALISATION | TINY | SMALL.get(name, {}) | FEWER_LAYERS.get(name, {}) | options


@cache
def shell(name, **options):
    """Returns (graph, make_model, random parameters) of a tiny model or of a registered scheme."""
    if name in ENTRIES:
        make_model = scheme_model(ENTRIES[name], **NORMALISATION)
    else:
        make_model = partial(build, **section(name, **options))
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
    return graph, make_model, randomise(nnx.to_pure_dict(state))


def put(folder, name, **options):
    """Exports a tiny model with random parameters and returns the path of the folder."""
    about = {
        "model": section(name, **options),
        "id2label": dict(enumerate(NAMES)),
        "step": 7,
        "frames": {"rule": "Its frames are (start + i s) modulo n."},
        "views": {"average": "probabilities"},
    }
    write_export(folder, *shell(name, **options)[1:], about)
    return str(folder)


@pytest.fixture
def without_program(monkeypatch):
    """Skips tracing the program, for tests that do not run it."""

    class Program:
        def serialize(self):
            return b""

    monkeypatch.setattr(vidformers.inference.export, "export_program", lambda model: Program())


@pytest.mark.parametrize(
    "name, options",
    [*((name, {}) for name in (*ENTRIES, *MORE_PARTS)), ("vtn", dict(backbone="resnet", stem=4, depths=(1, 1)))],
)
def test_the_program_computes_the_logits_of_the_model_at_any_batch_size(name, options, tmp_path):
    folder = Path(put(tmp_path / "out", name, **options))
    exported = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert (folder / "model.stablehlo").stat().st_size < 400_000, "parameters are arguments, not constants"
    given = safetensors.numpy.load_file(folder / "model.safetensors")
    specs = json.loads((folder / "config.json").read_text())["inputs"]
    assert ("index" in specs) == (name == "vtn")
    graph, make_model, parameters = shell(name, **options)
    frames, size = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))).shape[:2]
    video = clips(3, frames=frames, size=size)
    assert specs["video"]["shape"] == list(video.shape[1:])
    index = np.cumsum(np.random.default_rng(0).integers(1, 9, video.shape[:2], np.int32), axis=1, dtype=np.int32)
    inputs = [video, index] if "index" in specs else [video]

    @quick_jit
    def run(given, parameters, *inputs):
        own = nnx.merge(graph, parameters)(inputs[0], index=inputs[1] if "index" in specs else None)
        return own, [exported.call(given, *(x[:count] for x in inputs)) for count in (3, 1)]

    expected, found = run(given, parameters, *inputs)
    for logits in found:
        np.testing.assert_allclose(logits, expected[: len(logits)], **TIGHT)


def test_the_program_does_not_depend_on_the_devices_that_export_it(monkeypatch):
    model = nnx.eval_shape(lambda: shell("timesformer")[1](rngs=nnx.Rngs(0)))

    def program(platform):
        monkeypatch.setattr(target, "device_platform", lambda: platform)
        text = str(vidformers.inference.export.export_program(model).mlir_module())
        return re.sub(r"loc\(.*\)|^#loc.*", "", text, flags=re.M)  # without lines of the source

    assert program("tpu") == program("cpu")
    monkeypatch.setattr(vidformers.inference.export, "traced_for", lambda _: nullcontext())
    assert program("tpu") != program("cpu"), "layouts of TPUs differ, so the test above could fail"


@pytest.mark.parametrize("name", [*MODELS, "vtn with a ResNet"])
def test_every_export_is_read_back_completely(name, tmp_path, without_program):
    options = {} if name in MODELS else dict(backbone="resnet", stem=4, depths=(1, 1))
    folder = put(tmp_path / "out", name.split()[0], **options)
    _, make_model, parameters = shell(name.split()[0], **options)
    given = safetensors.numpy.load_file(Path(folder, "model.safetensors"))
    pretrained = load_weights(Init(weights=folder), make_model, NAMES)
    assert pretrained.counts == {"loaded": len(given), "resized": 0, "new": 0, "unused": 0} and not pretrained.remarks
    for path, leaf in flatten(parameters).items():
        np.testing.assert_array_equal(pretrained.values[path], leaf)


def test_a_head_is_loaded_by_the_names_of_its_classes(tmp_path, without_program):
    folder, (_, make_model, parameters) = put(tmp_path / "out", "vit"), shell("vit")
    turned = load_weights(Init(weights=folder), make_model, ("Fall", "sit down", "jump", "walk", "run"))
    np.testing.assert_array_equal(turned.values["head", "kernel"], parameters["head"]["kernel"][:, ::-1])
    others = ("run", "walk", "jump", "sit down", "climb")
    with pytest.raises(ConfigError, match=r"as many classes as the model, but they have other names: init\.head=as_is"):
        load_weights(Init(weights=folder), make_model, others)
    drawn = load_weights(Init(weights=folder), partial(make_model, num_classes=3), others[:3])
    assert [row.parameter for row in drawn.origins if row.how == "new"] == ["head.bias", "head.kernel"]
    assert drawn.counts["unused"] == 0 and drawn.remarks == ["The head is not loaded, since it has 5 classes."]


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
    assert [row.parameter for row in pretrained.origins if row.how == "resized"] == tables
    before, after = flatten(parameters), {".".join(map(str, path)): table for path, table in pretrained.values.items()}
    for path, table in before.items():
        found = after[".".join(map(str, path))]
        if path[-1] == "space":
            np.testing.assert_array_equal(found[0], table[0])
        if found.shape != table.shape:  # interpolation keeps the mean of a table, except at its edges
            np.testing.assert_allclose(found[1:].mean(0), table[1:].mean(0), atol=0.3)


def test_a_joint_table_of_positions_is_resized_in_space_and_time(tmp_path, without_program):
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
        ("vit", {}, dict(channels="bgr"), r"set init\.channels to rgb"),
    ],
)
def test_weights_of_another_model_are_refused(name, options, init, sentence, tmp_path, without_program):
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


def test_a_failed_export_leaves_nothing_and_a_full_folder_is_refused(tmp_path, monkeypatch, without_program):
    out = tmp_path / "out"
    (tmp_path / ".out.0123abcd.tmp").mkdir()
    (tmp_path / ".out.0123abcd.tmp" / "stray").write_text("from an export that was killed")
    for method in ("rename", "replace"):
        with monkeypatch.context() as patched:

            def fail(self, target):
                raise OSError(28, "No space left on device")

            patched.setattr(Path, method, fail)
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
    with pytest.raises(OSError, match="not empty"):
        put(out, "vit")


@pytest.mark.quick
def test_the_flags_of_a_mode():
    for flags, sentence in (
        (["--mode=export"], "--mode=export needs --out"),
        (["--out=x"], "--out is a flag of --mode=predict or --mode=explain or --mode=export"),
        (["--mode=export", "--out=x", "--video=y"], "--video is a flag of --mode=predict"),
        (["--mode=nothing"], "--mode=nothing must be one of train, eval"),
    ):
        with pytest.raises(FlagError, match=sentence):
            main.parse(["main.py", f"--config={ROOT}/configs/demo.py", *flags])


CLASSES = [f"motion {number}" for number in range(10)]


# Runs a program that can import nothing but the packages named here and the standard library.
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
    """The folder of a run at step 4, whose EMA differs from its parameters."""
    workdir = tmp_path_factory.mktemp("trained")
    config, *_ = main.parse(["main.py", *command(workdir, "out")])
    optimizer, _ = make_optimizer(4, 4, **config["optim"])
    state = quick_jit(partial(initial_state, partial(build, **config["model"]), optimizer, 0.5, 0))()
    state = state._replace(ema=randomise(state.ema))
    with Checkpoints(workdir, **config["checkpoint"]) as checkpoints:
        checkpoints.save(4, state, {})
    write_run_json(
        workdir, describe_run(config, {"classes": CLASSES, "train": "digest of train", "val": "digest of val"}, {})
    )
    return workdir


@pytest.fixture(scope="module")
def out(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert f"{folder}/README.md" in Run(command(trained, folder)).finish()
    return folder


def test_an_export_holds_the_ema_and_describes_the_run(trained, out):
    config, run = json.loads((out / "config.json").read_text()), json.loads((trained / "run.json").read_text())
    assert config["id2label"] == {str(label): name for label, name in enumerate(CLASSES)}
    assert (config["step"], config["commit"], config["data"]["val"]) == (4, run["commit"], "digest of val")
    assert config["frames"]["sampling"] == "uniform" and config["frames"]["test_short_side"] == 18
    assert config["frames"]["resize"] == "bilinear"
    assert config["frames"]["rule"] == Uniform(8).rule and Uniform(8).rule in (out / "README.md").read_text()
    assert config["model"]["width"] == 16 and config["image_mean"] == [0.5, 0.5, 0.5]
    model = load(trained)
    pretrained = load_weights(Init(weights=str(out)), model.make_model, CLASSES)
    ema = flatten(randomise(model.parameters))
    assert pretrained.counts == {"loaded": len(ema), "resized": 0, "new": 0, "unused": 0}
    for path, leaf in ema.items():
        np.testing.assert_array_equal(pretrained.values[path], leaf)


def test_a_run_is_weights_for_another_run_as_its_export_is(trained, out, tmp_path, capsys):
    """Also if its newest checkpoint is damaged."""
    make_model, run = load(trained).make_model, tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "6")
    for path in (run / "checkpoints" / "6" / "state").rglob("*"):
        path.is_file() and path.write_bytes(b"")
    exported = load_weights(Init(weights=str(out)), make_model, CLASSES[::-1])
    for folder in (trained, run):
        weights = load_weights(Init(weights=str(folder)), make_model, CLASSES[::-1], open_run(str(folder)))
        assert weights.counts == exported.counts and weights.values.keys() == exported.values.keys()
        assert weights.training_info["classes"] == CLASSES
        for path, value in exported.values.items():  # the head is matched by the names of the classes
            np.testing.assert_array_equal(weights.values[path], value)
    assert f"step 6 in {run}/checkpoints is damaged" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"it was trained with model\.mean"):
        other = partial(make_model, mean=(0.1, 0.1, 0.1))
        load_weights(Init(weights=str(trained)), other, CLASSES, open_run(str(trained)))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match="without a checkpoint that can be read"):
        open_run(str(run))
    assert open_run(str(out)) is None and open_run("timm/vit") is None


def test_an_export_predicts_without_a_run(trained, out, tmp_path):
    model = load(trained)
    config, *_ = main.parse(["main.py", *command(tmp_path / "none", "x", **{"init.weights": out})])
    predictor = Predictor(config, tmp_path / "none")
    assert predictor.classes == tuple(CLASSES) and predictor.step == 0
    for path, leaf in flatten(model.parameters).items():
        np.testing.assert_array_equal(flatten(predictor.parameters)[path], leaf)
    beside = load_export(out, config | {"model": section("havit")})  # the export has a config of its own
    assert (beside.classes, beside.graph) == (predictor.classes, predictor.graph)
    jax.tree.map(np.testing.assert_array_equal, beside.parameters, predictor.parameters)
    config["init"]["weights"] = str(out / "model.safetensors")  # config.json beside it names the classes
    config["model"]["depth"] = 2
    with pytest.raises(ConfigError, match=r"model\.depth=1, and here it is 2"):
        Predictor(config, tmp_path / "none")


def test_run_py_needs_only_jax_numpy_and_flatbuffers(trained, out, tmp_path):
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
    probabilities = np.exp(expected - expected.max(axis=1, keepdims=True))
    best = model.best((probabilities / probabilities.sum(axis=1, keepdims=True)).mean(axis=0))
    assert [line.strip().partition("%  ")[2] for line in done.stdout.splitlines()] == [name for name, _ in best]


def test_the_config_of_another_model_is_refused(trained, tmp_path):
    flags = command(trained, tmp_path / "out", **{"model.mean": "(0.1, 0.1, 0.1)"})
    with pytest.raises(ConfigError, match=r"a run with model\.mean=\[0\.5, 0\.5, 0\.5\], not \[0\.1, 0\.1, 0\.1\]"):
        main.parse(["main.py", *flags])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="is the folder of a run. Export its weights with --mode=export"):
        load_weights(Init(weights=str(trained)), shell("vit")[1])
