"""Weights from elsewhere give the answers that they gave there, and every array of them is accounted for."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from command import Run, arguments, render
from drawn import clip, draw
from weights import GOLDENS, SIDE, TIGHT, arrays_of, loaded, shell, write

from vidformers.errors import ConfigError
from vidformers.pretrained import Init, load
from vidformers.pretrained.files import open_file
from vidformers.pretrained.fit import resize, resize_patch

# Of HuggingFace's file, as the authors of TimeSformer name the same arrays.
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


def google(arrays):
    """The arrays of a timm ViT as Google's archives name and shape them (from the layout of its code)."""
    width, heads = 192, 3
    found = {
        "cls": arrays["cls_token"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "head/kernel": arrays["head.weight"].T,
        "head/bias": arrays["head.bias"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
    }
    for i in range(3):
        at, to = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{to}/LayerNorm_{number}/scale"] = arrays[f"{at}.{norm}.weight"]
            found[f"{to}/LayerNorm_{number}/bias"] = arrays[f"{at}.{norm}.bias"]
        attention = f"{to}/MultiHeadDotProductAttention_1"
        for part, kernel, bias in zip(
            ("query", "key", "value"),
            np.split(arrays[f"{at}.attn.qkv.weight"], 3),
            np.split(arrays[f"{at}.attn.qkv.bias"], 3),
            strict=True,
        ):
            found[f"{attention}/{part}/kernel"] = kernel.T.reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        found[f"{attention}/out/kernel"] = arrays[f"{at}.attn.proj.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = arrays[f"{at}.attn.proj.bias"]
        for number, layer in enumerate(("fc1", "fc2")):
            found[f"{to}/MlpBlock_3/Dense_{number}/kernel"] = arrays[f"{at}.mlp.{layer}.weight"].T
            found[f"{to}/MlpBlock_3/Dense_{number}/bias"] = arrays[f"{at}.mlp.{layer}.bias"]
    return found


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
def test_answers_equal_those_of_the_library_it_comes_from(golden, name, save):
    frames, said = (1, clip((2, SIDE, SIDE, 3))[:, None]) if name == "vit" else (4, clip((2, 4, SIDE, SIDE, 3)))
    folder = save(arrays_of(golden), GOLDENS[golden].get("about"))
    features = "pooler_output" in GOLDENS[golden]
    run, pretrained = loaded(folder, name, dict(head="draw") if features else None, frames=frames)
    expected = np.array(GOLDENS[golden]["pooler_output" if features else "logits"])
    assert expected.std() >= (0.5 if features else 1)
    np.testing.assert_allclose(run(said)[int(features)], expected, **TIGHT)
    assert {row.how for row in pretrained.rows if not row.parameter.startswith("head")} == {"loaded"}
    assert not pretrained.unused


def test_google_s_archives(tmp_path):
    """A fixture from the layout of Google's code; the published archives cannot be had here."""
    np.savez(tmp_path / "weights.npz", **google(arrays_of("timm_vit")))
    run, pretrained = loaded(str(tmp_path / "weights.npz"), "vit", frames=1)
    np.testing.assert_allclose(run(clip((2, SIDE, SIDE, 3))[:, None])[0], GOLDENS["timm_vit"]["logits"], **TIGHT)
    assert pretrained.layout == "ViT of Google" and not pretrained.unused


def test_timesformer_as_its_authors_name_it(save):
    """A fixture from the layout of their code."""
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
        ("havit", dict(attention="joint")),
    ],
)
def test_every_model_with_a_vit_inside_starts_from_one(name, options, save):
    run, pretrained = loaded(save(arrays_of("timm_vit")), name, frames=2, **options)
    assert np.isfinite(run(clip((1, 2, SIDE, SIDE, 3)))[0]).all()
    spared = {row.parameter for row in pretrained.rows if row.how == "new" and row.note != "zero"}
    assert all(".sublayers." in name or "time" in name for name in spared), spared
    assert all("dictionary" in name or ".stages.1." in name or ".stages.2." in name for name in spared), spared


def test_copies_in_time(save):
    folder = save(arrays_of("timm_vit"))
    copied = load(Init(weights=folder, time="copy", head="draw"), shell("timesformer", frames=2)[-1]).values
    layers = ("encoder", "stages", 0, "layers", "sublayers")
    for part in ("qkv", "out"):
        np.testing.assert_array_equal(copied[(*layers, 0, part, "kernel")], copied[(*layers, 1, part, "kernel")])
    drawn = load(Init(weights=folder, time="draw", head="draw"), shell("timesformer", frames=2)[-1]).values
    assert (*layers, 0, "qkv", "kernel") not in drawn and (*layers, 1, "qkv", "kernel") in drawn


def test_another_resolution_and_another_number_of_frames(save):
    folder = save(arrays_of("hf_timesformer"), GOLDENS["hf_timesformer"]["about"])
    _, pretrained = loaded(folder, "timesformer", frames=8, image_size=96)
    table = {row.parameter: row for row in pretrained.rows}
    assert table["encoder.embedding.space"].how == table["encoder.embedding.time"].how == "resized"
    assert "positions of 4 x 4 patches" in table["encoder.embedding.space"].note
    space = pretrained.values["encoder", "embedding", "space"]
    before = arrays_of("hf_timesformer")["timesformer.embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(space[0], before[0])
    corner = resize(before[1:].reshape(4, 4, -1), (6, 6))[0, 0]
    np.testing.assert_array_equal(space[1], corner)


def test_resizing_keeps_a_constant_and_what_is_linear():
    ramp = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij"), axis=-1)
    larger = resize(np.concatenate([ramp, np.ones((4, 4, 1))], axis=-1), (8, 8))
    np.testing.assert_allclose(larger[..., 2], 1, atol=1e-6)
    places = (np.arange(8) + 0.5) / 2 - 0.5  # where the new places lie among the old ones
    np.testing.assert_allclose(larger[3:5, :, 0], np.broadcast_to(places[3:5, None], (2, 8)), atol=1e-5)


def test_a_resized_patch_answers_to_a_scaled_patch_as_before():
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(8, 8, 3, 5)).astype(np.float32), rng.normal(size=(8, 8, 3)).astype(np.float32)
    scaled = np.asarray(jax.image.resize(patch, (16, 16, 3), "linear"))
    found = np.einsum("yxc,yxcd->d", scaled, resize_patch(kernel, (16, 16)))
    np.testing.assert_allclose(found, np.einsum("yxc,yxcd->d", patch, kernel), rtol=0, atol=1e-4)


def test_blue_green_red(save):
    folder, image = save(arrays_of("timm_vit")), clip((2, SIDE, SIDE, 3))[:, None]
    run, _ = loaded(folder, "vit", dict(channels="bgr"), frames=1)
    np.testing.assert_allclose(run(image[..., ::-1])[0], GOLDENS["timm_vit"]["logits"], **TIGHT)


def test_classes_in_another_order_are_put_in_ours(save):
    names = ["draw a line", "b", "c", "d", "e", "f", "g"]
    about = {"id2label": {str(i): name for i, name in enumerate(names)}}
    run, _ = loaded(
        save(arrays_of("timm_vit"), about),
        "vit",
        dict(head="auto"),
        ["g", "Draw_a_line", "b", "c", "d", "e", "f"],
        frames=1,
    )
    found = run(clip((2, SIDE, SIDE, 3))[:, None])[0]
    np.testing.assert_allclose(found, np.roll(GOLDENS["timm_vit"]["logits"], 1, axis=1), **TIGHT)


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
        (lambda a: a.update(stray=np.zeros(3, np.float32)), "vit", {}, {}, r"nothing in the model takes stray; init\."),
        (lambda a: a.update({"blocks.1.mlp.fc1.weight": a["norm.weight"]}), "vit", {}, {}, "shape"),
        (
            lambda a: a["norm.weight"].__setitem__(0, np.nan),
            "vit",
            {},
            {},
            r"'norm\.weight' holds numbers that are not",
        ),
        (lambda a: a.clear() or a.update(foo=np.zeros(3, np.float32)), "vit", {}, {}, r"its names \(foo, \.\.\.\) are"),
        (lambda a: None, "vit", {}, dict(depth=2), r"no place for its layers 2 to 2; init\.allow"),
        (lambda a: None, "vit", {}, dict(depth=4), "it has 3 layers, and the model needs 4"),
        (lambda a: None, "vit", {}, dict(heads=4), r"trained with 3 heads, and model\.heads is 4"),
        (lambda a: None, "vit", {}, dict(width=128, heads=2), "has the shape"),
        (lambda a: None, "vit", {}, dict(patch_size=8), r"16 pixels a side, and model\.patch_size is 8; init\.pa"),
        (lambda a: None, "vit", dict(head="auto"), {}, "as many classes as the model, but it does not name them"),
        (lambda a: None, "vit", dict(head="as_is"), dict(num_classes=5), "its head has 7 classes, the model 5"),
        (lambda a: a.update({"reg_token": np.zeros((1, 4, 192), np.float32)}), "vit", {}, {}, "register tokens"),
        (lambda a: None, "stat", {}, dict(width=16, heads=2, depth=4, depths=(1, 1, 2), patch_size=8), "no place for"),
        (
            lambda a: None,
            "swin",
            {},
            dict(width=16, heads=2, depth=2, depths=(2,), window=(2, 4, 4), patch_size=4),
            "no place for",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, name, init, options, sentence, save):
    arrays = arrays_of("timm_vit")
    change(arrays)
    folder = save(arrays)
    with pytest.raises(ConfigError, match=sentence) as error:
        loaded(folder, name, init, frames=2 if name != "vit" else 1, **options)
    assert folder in str(error.value) and str(error.value).count("\n") == 0


def test_normalisation_follows_the_weights(save):
    folder = save(arrays_of("timm_vit"))
    Path(folder, "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    )
    with pytest.raises(ConfigError, match=r"model\.mean=\(0\.485, 0\.456, 0\.406\) and model\.std=\(0\.229"):
        loaded(folder, "vit", dict(allow=()), frames=1)
    loaded(folder, "vit", dict(allow=()), frames=1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_time_that_the_model_has_no_place_for(save):
    folder = save(arrays_of("hf_timesformer"), GOLDENS["hf_timesformer"]["about"])
    with pytest.raises(ConfigError, match=r"no place for its attention over time; init\.allow=\"\('time',\)\""):
        loaded(folder, "vit", frames=4)
    loaded(folder, "vit", dict(allow=("time",)), frames=4)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "in no format of weights"),
        (b"text that is long enough", "in no format"),
        (b'\x10\0\0\0\0\0\0\0{"a":', "is damaged, or no file of safetensors"),
        (b"PK\x03\x04garbage", "is damaged"),
        (b"\x80\x02}q\x00.", "no file of torch.save"),
    ],
)
def test_damaged_files(content, sentence, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        open_file(str(path))


def test_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="neither a file, nor a folder, nor OWNER/NAME"):
        open_file(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="holds no file of weights"):
        open_file(str(tmp_path))
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=np.zeros(2))
    with pytest.raises(ConfigError, match=r"several files of weights, a\.npz and b\.npz"):
        open_file(str(tmp_path))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(ConfigError, match="holds pickled objects"):
        open_file(str(tmp_path / "objects.npz"))


def test_a_repository_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    safetensors.numpy.save_file({"x": np.ones(3, np.float32)}, snapshot / "model.safetensors")
    file = open_file("owner/name")
    assert file.revision == commit and list(file.arrays) == ["x"]
    with pytest.raises(ConfigError, match=r"owner/other is not in the cache of huggingface_hub, and .* reached"):
        open_file("owner/other")


def test_parts_named_by_an_index(tmp_path):
    for number in (1, 2):
        safetensors.numpy.save_file({f"x{number}": np.full(3, number, np.float32)}, tmp_path / f"p{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x1": "p1.safetensors", "x2": "p2.safetensors"}}))
    assert {name: array[0] for name, array in open_file(str(tmp_path)).arrays.items()} == {"x1": 1, "x2": 2}
    (tmp_path / "p2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names p2\.safetensors, which is not there"):
        open_file(str(tmp_path))


# As a user starts it


def small_timm():
    """A ViT of timm as small as the tiny runs of `command`, with the ten classes of their data."""
    block = {
        "norm1.weight": (16,),
        "norm1.bias": (16,),
        "attn.qkv.weight": (48, 16),
        "attn.qkv.bias": (48,),
        "attn.proj.weight": (16, 16),
        "attn.proj.bias": (16,),
        "norm2.weight": (16,),
        "norm2.bias": (16,),
        "mlp.fc1.weight": (64, 16),
        "mlp.fc1.bias": (64,),
        "mlp.fc2.weight": (16, 64),
        "mlp.fc2.bias": (16,),
    }
    shapes = {
        "cls_token": (1, 1, 16),
        "pos_embed": (1, 5, 16),
        "patch_embed.proj.weight": (16, 3, 8, 8),
        "patch_embed.proj.bias": (16,),
        "norm.weight": (16,),
        "norm.bias": (16,),
        "head.weight": (10, 16),
        "head.bias": (10,),
        **{f"blocks.0.{name}": shape for name, shape in block.items()},
    }
    return {name: draw(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("data"))


def test_a_run_that_starts_from_weights(data, save, tmp_path):
    fields = {"init.weights": save(small_timm()), "init.head": "as_is", "eval.on_bad": "skip"}
    evaluated, trained = tmp_path / "evaluated", tmp_path / "trained"
    said = Run(arguments(data, evaluated, fields, mode="eval")).finish()
    assert "ViT of timm" in said and "encoder.class_token" in said
    account = json.loads((evaluated / "init.json").read_text())
    assert account["counts"] == {"loaded": 20, "resized": 0, "new": 0, "unused": 0}
    assert len(account["sha256"]) == 64 and account["layout"] == "ViT of timm"
    command = arguments(data, trained, {**fields, "optim.lr": 1e-9, "optim.weight_decay": 0.0})
    Run(command).finish()
    (name,) = [path.name for path in evaluated.glob("eval_*.json")]
    before = json.loads((evaluated / name).read_text())
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    loss = next(key for key in last if key.startswith("val/loss@2"))
    assert last[loss] == pytest.approx(before[loss], rel=1e-4), "a rate of nearly zero keeps what was loaded"
    Path(fields["init.weights"], "model.safetensors").unlink()
    assert "Continues" in Run(command).finish(), "what was loaded is in the checkpoint"


def test_a_run_refuses_weights_that_do_not_fit_before_anything_is_compiled(data, save, tmp_path):
    arrays = small_timm()
    del arrays["norm.bias"]
    sentence = Run(arguments(data, tmp_path / "run", {"init.weights": save(arrays)})).refused()
    assert "the array 'norm.bias' is missing" in sentence and not (tmp_path / "run" / "run.json").exists()
    sentence = Run(arguments(data, tmp_path / "run", {"init.time": "later"})).refused()
    assert "init.time='later' must be one of zero, copy, draw" in sentence
