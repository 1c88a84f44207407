"""Weights of image models and TimeSformer give the answers of the library that they come from.

The report accounts for every array, and weights that do not fit are refused.
"""

import json
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from command import Run, arguments, one_sentence, render
from drawn import clip
from weights import GOLDENS, SIDE, TIGHT, arrays_of, fitted, google, loaded, tiny_vit, write

import main
from vidformers.errors import ConfigError
from vidformers.pretrained import layouts
from vidformers.pretrained.assign import resize, resize_patch, resize_time
from vidformers.pretrained.assign_transformer import _without_extra

# Names in Hugging Face's TimeSformer -> names in the file of TimeSformer's authors.
AUTHORS = (
    (r"^timesformer\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^timesformer\.embeddings\.cls_token", "cls_token"),
    (r"^timesformer\.embeddings\.position_embeddings", "pos_embed"),
    (r"^timesformer\.embeddings\.time_embeddings", "time_embed"),
    (r"^timesformer\.encoder\.layer\.", "blocks."),
    (r"\.temporal_attention\.attention\.qkv", ".temporal_attn.qkv"),
    (r"\.temporal_attention\.output\.dense", ".temporal_attn.proj"),
    (r"\.temporal_dense", ".temporal_fc"),
    (r"\.temporal_layernorm", ".temporal_norm1"),
    (r"\.attention\.attention\.qkv", ".attn.qkv"),
    (r"\.attention\.output\.dense", ".attn.proj"),
    (r"\.layernorm_before", ".norm1"),
    (r"\.layernorm_after", ".norm2"),
    (r"\.intermediate\.dense", ".mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
    (r"^timesformer\.layernorm", "norm"),
    (r"^classifier", "head"),
)


@pytest.fixture
def save(tmp_path):
    return partial(write, tmp_path)


def authors(arrays):
    renamed = {}
    for name, array in arrays.items():
        for pattern, words in AUTHORS:
            name = re.sub(pattern, words, name)
        renamed[name] = array
    return renamed


@pytest.mark.parametrize(
    "golden, name",
    [
        ("timm_vit", "vit"),
        ("timm_deit", "vit"),
        ("timm_dinov2", "vit"),
        ("hf_vit", "vit"),
        ("hf_dinov2", "vit"),
        ("hf_timesformer", "timesformer"),
        ("hf_timesformer_joint", "joint"),
    ],
)
def test_the_answers_are_those_of_the_library_that_the_weights_come_from(golden, name, save):
    frames, video = (1, clip((2, SIDE, SIDE, 3))[:, None]) if name == "vit" else (4, clip((2, 4, SIDE, SIDE, 3)))
    folder = save(arrays_of(golden), GOLDENS[golden].get("about"))
    features = "pooler_output" in GOLDENS[golden]
    run, pretrained = loaded(folder, name, dict(head="draw") if features else None, frames=frames)
    expected = np.array(GOLDENS[golden]["pooler_output" if features else "logits"])
    assert expected.std() >= (0.5 if features else 1)
    np.testing.assert_allclose(run(video)[int(features)], expected, **TIGHT)
    assert {row.how for row in pretrained.origins if not row.parameter.startswith("head")} == {"loaded"}
    assert not pretrained.unused


def test_an_archive_of_google_gives_the_same_answers(tmp_path):
    """The archive has the layout of Google's code; it is not a published one."""
    np.savez(tmp_path / "weights.npz", **google(arrays_of("timm_vit")))
    run, pretrained = loaded(str(tmp_path / "weights.npz"), "vit", frames=1)
    np.testing.assert_allclose(run(clip((2, SIDE, SIDE, 3))[:, None])[0], GOLDENS["timm_vit"]["logits"], **TIGHT)
    assert pretrained.layout == "ViT of Google" and not pretrained.unused


def test_timesformer_of_its_authors_gives_the_same_answers(save):
    """The file has the layout of their code; it is not a published one."""
    run, pretrained = loaded(
        save({f"model.{name}": array for name, array in authors(arrays_of("hf_timesformer")).items()}),
        "timesformer",
        frames=4,
    )
    np.testing.assert_allclose(run(clip((2, 4, SIDE, SIDE, 3)))[0], GOLDENS["hf_timesformer"]["logits"], **TIGHT)
    assert pretrained.layout == "TimeSformer"


@pytest.mark.parametrize(
    "name, options",
    [
        ("mevit", dict(motion_blocks=2)),
        ("joint", {}),
        ("havit", dict(dictionary=4)),
        ("havit", dict(dictionary=4, dictionary_per="model")),
        ("havit", dict(attention="joint")),
    ],
)
def test_every_model_with_a_vit_inside_starts_from_one(name, options, save):
    pretrained = fitted(save(arrays_of("timm_vit")), name, frames=2, **options)
    drawn = {row.parameter for row in pretrained.origins if row.how == "new" and row.note != "zero"}
    assert all(re.search(r"\.sublayers\.|\.dictionary\.|time", name) for name in drawn), drawn
    assert all("dictionary" in name or ".stages.1." in name or ".stages.2." in name for name in drawn), drawn


def test_attention_over_time_is_copied_or_drawn(save):
    folder = save(arrays_of("timm_vit"))
    copied = fitted(folder, "timesformer", dict(time="copy", head="draw"), frames=2).values
    layers = ("encoder", "stages", 0, "layers", "sublayers")
    for part in ("qkv", "out"):
        np.testing.assert_array_equal(copied[(*layers, 0, part, "kernel")], copied[(*layers, 1, part, "kernel")])
    drawn = fitted(folder, "timesformer", dict(time="draw", head="draw"), frames=2).values
    assert (*layers, 0, "qkv", "kernel") not in drawn and (*layers, 1, "qkv", "kernel") in drawn


def test_positions_are_resized_to_another_resolution_and_number_of_frames(save):
    folder = save(arrays_of("hf_timesformer"), GOLDENS["hf_timesformer"]["about"])
    pretrained = fitted(folder, "timesformer", frames=8, image_size=96)
    table = {row.parameter: row for row in pretrained.origins}
    assert table["encoder.embedding.space"].how == table["encoder.embedding.time"].how == "resized"
    assert "positions of 4 x 4 patches" in table["encoder.embedding.space"].note
    space = pretrained.values["encoder", "embedding", "space"]
    before = arrays_of("hf_timesformer")["timesformer.embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(space[0], before[0])
    corner = resize(before[1:].reshape(4, 4, -1), (6, 6))[0, 0]
    np.testing.assert_array_equal(space[1], corner)


def test_resizing_keeps_constant_and_linear_tables():
    ramp = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij"), axis=-1)
    larger = resize(np.concatenate([ramp, np.ones((4, 4, 1))], axis=-1), (8, 8))
    np.testing.assert_allclose(larger[..., 2], 1, atol=1e-6)
    places = (np.arange(8) + 0.5) / 2 - 0.5  # where the new places lie among the old ones
    np.testing.assert_allclose(larger[3:5, :, 0], np.broadcast_to(places[3:5, None], (2, 8)), atol=1e-5)


@pytest.mark.quick
def test_what_could_fill_the_memory_is_not_resized_or_multiplied():
    with pytest.raises(ConfigError, match="5000 positions along an axis, and at most 4096 are resized"):
        resize_time(zeros(5000, 1), 8)
    out = {"kernel": zeros(9999, 1), "bias": zeros(1)}
    with pytest.raises(ConfigError, match=r"the projection after its attention over time has the shape \(1, 9999\)"):
        _without_extra({"out": out, "extra": {"kernel": zeros(1, 9999), "bias": zeros(9999)}})


def test_a_resized_kernel_responds_to_an_enlarged_patch_as_before():
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(8, 8, 3, 5)).astype(np.float32), rng.normal(size=(8, 8, 3)).astype(np.float32)
    scaled = np.asarray(jax.image.resize(patch, (16, 16, 3), "linear"))
    found = np.einsum("yxc,yxcd->d", scaled, resize_patch(kernel, (16, 16)))
    np.testing.assert_allclose(found, np.einsum("yxc,yxcd->d", patch, kernel), rtol=0, atol=1e-4)


def test_a_kernel_for_blue_green_red_is_turned(save):
    folder, image = save(arrays_of("timm_vit")), clip((2, SIDE, SIDE, 3))[:, None]
    run, _ = loaded(folder, "vit", dict(channels="bgr"), frames=1)
    np.testing.assert_allclose(run(image[..., ::-1])[0], GOLDENS["timm_vit"]["logits"], **TIGHT)


def test_classes_are_put_in_the_order_of_the_data_set(save):
    names = ["draw a line", "b", "c", "d", "e", "f", "g"]
    about = {"id2label": {str(i): name for i, name in enumerate(names)}}
    run, _ = loaded(
        save(arrays_of("timm_vit"), about),
        "vit",
        dict(head="auto"),
        ["g", "Draw_a_line", "b", "c", "d", "e", "f"],
        frames=1,
    )
    logits = run(clip((2, SIDE, SIDE, 3))[:, None])[0]
    np.testing.assert_allclose(logits, np.roll(GOLDENS["timm_vit"]["logits"], 1, axis=1), **TIGHT)


def keep(arrays):
    """Changes nothing."""


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "change, name, init, options, sentence",
    [
        (lambda a: a.pop("norm.bias"), "vit", {}, {}, r"the array 'norm\.bias' is missing"),
        (
            lambda a: a.pop("blocks.1.attn.qkv.bias"),
            "vit",
            {},
            {},
            r"the array 'blocks\.1\.attn\.qkv\.bias' is missing",
        ),
        (
            lambda a: a.update(stray=np.zeros(3, np.float32)),
            "vit",
            {},
            {},
            r"arrays that the model does not use: stray\. To ignore them, .* init\.allow=\"\('stray',\)\"",
        ),
        (lambda a: a.update({"blocks.1.mlp.fc1.weight": a["norm.weight"]}), "vit", {}, {}, "shape"),
        (
            lambda a: a["norm.weight"].__setitem__(0, np.nan),
            "vit",
            {},
            {},
            r"'norm\.weight' holds numbers that are not",
        ),
        (
            lambda a: a.clear() or a.update(foo=np.zeros(3, np.float32)),
            "vit",
            {},
            {},
            r"its names \(foo, \.\.\.\) belong to no",
        ),
        (
            lambda a: a.update({"blocks.1.ls1.gamma": zeros(9999), "blocks.1.attn.proj.weight": zeros(1, 9999)}),
            "vit",
            {},
            {},
            r"layer 'blocks\.1\.attn\.proj' have the shapes \(1, 9999\) and \(192,\), which do not belong together",
        ),
        (
            lambda a: a.update({"blocks.1.ls1.gamma": zeros(1)}),
            "vit",
            {},
            {},
            r"the shapes \(192, 192\) and \(1,\), which do not belong together",
        ),
        (
            lambda a: a.update(pos_embed=zeros(1, 2, 9999)),
            "vit",
            {},
            {},
            r"positions of 1 x 1 patches has the shape \(1, 1, 1, 9999\), where the model's .* has the width 192",
        ),
        (keep, "vit", {}, dict(depth=2), r"no parameters for its layers 2 to 2; init\.allow"),
        (keep, "vit", {}, dict(depth=4), "it has 3 layers, and the model needs at least 4"),
        (keep, "vit", {}, dict(heads=4), r"trained with 3 heads, and model\.heads is 4"),
        (keep, "vit", {}, dict(width=128, heads=2), "has the shape"),
        (keep, "vit", {}, dict(patch_size=8), r"16 pixels a side, and model\.patch_size is 8; init\.pa"),
        (keep, "vit", dict(head="auto"), {}, "as many classes as the model, but it does not name them"),
        (keep, "vit", dict(head="as_is"), dict(num_classes=5), "its head has 7 classes, and the model has 5"),
        (lambda a: a.update({"reg_token": np.zeros((1, 4, 192), np.float32)}), "vit", {}, {}, "register tokens"),
        (
            keep,
            "stat",
            {},
            dict(width=16, heads=2, depth=4, depths=(1, 1, 2), patch_size=8),
            "does not fit this model",
        ),
        (
            keep,
            "swin",
            {},
            dict(width=16, heads=2, depth=2, depths=(2,), window=(2, 4, 4), patch_size=4),
            "does not fit this model",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, name, init, options, sentence, save):
    arrays = arrays_of("timm_vit")
    change(arrays)
    folder = save(arrays)
    with pytest.raises(ConfigError, match=sentence) as error:
        fitted(folder, name, init, frames=2 if name != "vit" else 1, **options)
    assert folder in str(error.value) and str(error.value).count("\n") == 0


def test_another_normalisation_than_that_of_the_weights_is_refused(save):
    folder = save(arrays_of("timm_vit"))
    Path(folder, "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    )
    with pytest.raises(ConfigError, match=r"model\.mean=\(0\.485, 0\.456, 0\.406\) and model\.std=\(0\.229"):
        fitted(folder, "vit", dict(allow=()), frames=1)
    fitted(folder, "vit", dict(allow=()), frames=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_attention_over_time_is_left_out_only_when_allowed(save):
    folder = save(arrays_of("hf_timesformer"), GOLDENS["hf_timesformer"]["about"])
    with pytest.raises(ConfigError, match=r"no parameters for its attention over time; init\.allow=\"\('time',\)\""):
        fitted(folder, "vit", frames=4)
    left_out = fitted(folder, "vit", dict(allow=("time", "normalisation")), frames=4)
    assert "Not loaded: attention over time." in left_out.remarks


@pytest.mark.quick
def test_every_golden_file_has_exactly_one_layout():
    for name, golden in GOLDENS.items():
        assert sum(layout.prefix(golden["arrays"]) is not None for layout in layouts.LAYOUTS) == 1, name


# Through the command line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data"))


@pytest.fixture
def command(capsys):
    """Returns a function that runs a command line in this process: (exit status, stdout, stderr)."""

    def run(arguments):
        status = main.main(["main.py", *arguments])
        return status, *capsys.readouterr()

    return run


def test_a_run_starts_from_weights(data, save, tmp_path, command):
    """Training has processes of its own: with one device they save faster than this one, which has eight."""
    fields = {"init.weights": save(tiny_vit()), "init.head": "as_is", "eval.on_bad": "skip"}
    evaluated, trained = tmp_path / "evaluated", tmp_path / "trained"
    status, out, _ = command(arguments(data, evaluated, fields, mode="eval"))
    assert status == 0 and "ViT of timm" in out and "encoder.class_token" in out
    report = json.loads((evaluated / "init.json").read_text())
    assert report["counts"] == {"loaded": 20, "resized": 0, "new": 0, "unused": 0}
    assert len(report["sha256"]) == 64 and report["layout"] == "ViT of timm"
    fields |= {"optim.lr": 1e-9, "optim.weight_decay": 0.0, "optim.warmup_steps": 1}
    fields |= {"train.total_steps": 2, "train.eval_every_steps": 2}
    Run(arguments(data, trained, fields)).finish()
    (name,) = [path.name for path in evaluated.glob("eval_*.json")]
    before = json.loads((evaluated / name).read_text())
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    loss = next(key for key in last if key.startswith("val/loss@2"))
    assert last[loss] == pytest.approx(before[loss], rel=1e-4), "a learning rate near zero keeps the loaded values"
    Path(fields["init.weights"], "model.safetensors").unlink()
    continued = Run(arguments(data, trained, fields)).finish()
    assert "is finished, at step 2." in continued, "the checkpoint holds the loaded values"


def test_a_run_refuses_weights_that_do_not_fit_before_it_compiles(data, save, tmp_path, command):
    arrays = tiny_vit()
    del arrays["norm.bias"]
    status, _, err = command(arguments(data, tmp_path / "run", {"init.weights": save(arrays)}))
    assert status == 2 and "the array 'norm.bias' is missing" in one_sentence(err)
    assert not (tmp_path / "run" / "run.json").exists()
    status, _, err = command(arguments(data, tmp_path / "run", {"init.time": "later"}))
    assert status == 2 and "init.time='later' must be one of zero, copy, draw" in one_sentence(err)
