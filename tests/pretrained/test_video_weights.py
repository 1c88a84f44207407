"""Weights of video models give the answers of the library that they come from. Weights that do not fit are refused."""

from functools import partial

import numpy as np
import pytest
from drawn import clip, draw
from flax import nnx
from weights import CLASSES, GOLDENS, SHAPE, SIDE, TIGHT, arrays_of, fitted, loaded, write

from vidformers import build
from vidformers.errors import ConfigError
from vidformers.pretrained import Init
from vidformers.pretrained.assign import resize

VIVIT = dict(frames=8, patch_frames=2, positions="joint", gelu="tanh")
VTN = dict(frames=7, window=(4,), temporal_depth=2, temporal_dropout=0.0, head_dropout=0.0)
SWIN = dict(frames=8, image_size=32, patch_size=4, width=64, heads=2, depth=4, depths=(2, 2), window=(2, 4, 4))
CASES = {
    "hf_vivit": ("joint", VIVIT),
    "tokenshift": ("tokenshift", dict(frames=4)),
    "vtn": ("vtn", VTN),
    "torchvision_swin": ("swin", SWIN),
}
LAYERS = ("encoder", "stages", 0, "layers", "sublayers")


def as_published(golden):
    """Returns the arrays of a published file: with its prefixes, and with the arrays that no model needs."""
    arrays = arrays_of(golden)
    if golden == "torchvision_swin":
        rows = np.array(GOLDENS[golden]["rows"])
        tables = [name for name in arrays if name.endswith("relative_position_bias_table")]
        arrays |= {name.replace("bias_table", "index"): rows for name in tables}
    if golden == "vtn":
        arrays["temporal_encoder.embeddings.position_ids"] = np.arange(288)[None]
    prefix = {"tokenshift": "module.base_model.", "vtn": "module."}.get(golden, "")
    return {prefix + name: array for name, array in arrays.items()}


@pytest.fixture
def save(tmp_path):
    return partial(write, tmp_path)


def rows(pretrained):
    return {row.parameter: row for row in pretrained.origins}


@pytest.mark.parametrize("golden", CASES)
def test_the_answers_are_those_of_the_library_that_the_weights_come_from(golden, save):
    name, options = CASES[golden]
    run, pretrained = loaded(save(as_published(golden), GOLDENS[golden].get("about")), name, **options)
    expected = np.array(GOLDENS[golden]["logits"])
    assert expected.std() >= 1
    side = options.get("image_size", SIDE)
    np.testing.assert_allclose(run(clip((2, options["frames"], side, side, 3)))[0], expected, **TIGHT)
    assert {row.how for row in pretrained.origins} == {"loaded"} and not pretrained.unused
    assert pretrained.still_clip_differences is None


@pytest.mark.parametrize("golden", CASES)
@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda arrays, name: arrays.pop(name), "is missing"),
        (
            lambda arrays, name: arrays.update({name: arrays[name][:-1]}),
            "shape|has no parameters|do not form a square",
        ),
    ],
)
def test_incomplete_files_are_refused(golden, change, sentence, save):
    (name, options), arrays = CASES[golden], as_published(golden)
    change(arrays, list(arrays)[len(arrays) // 2])
    with pytest.raises(ConfigError, match=sentence) as error:
        fitted(save(arrays, GOLDENS[golden].get("about")), name, **options)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


# ViViT


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, field",
    [
        (dict(patch_frames=3), "model.patch_frames=3 does not divide model.frames=8"),
        (dict(patch_frames=0), "model.patch_frames=0"),
        (dict(positions="both"), "model.positions='both'"),
        (dict(gelu="fast"), "model.gelu='fast'"),
    ],
)
def test_impossible_fields_of_tubelets_are_refused(options, field):
    with pytest.raises(ConfigError, match=field):
        nnx.eval_shape(lambda: build("joint", **SHAPE | dict(frames=8) | options, rngs=nnx.Rngs(0)))


def test_a_remark_names_the_gelu_of_vivit(save):
    folder = save(as_published("hf_vivit"), GOLDENS["hf_vivit"]["about"])
    exact, pretrained = loaded(folder, "joint", **VIVIT | dict(gelu="exact"))
    difference = np.abs(exact(clip((2, 8, SIDE, SIDE, 3)))[0] - np.array(GOLDENS["hf_vivit"]["logits"])).max()
    assert 1e-4 < difference < 0.05
    assert any("tanh approximation of GELU" in remark for remark in pretrained.remarks)
    assert not any("GELU" in remark for remark in fitted(folder, "joint", **VIVIT).remarks)


def test_a_joint_table_is_resized_over_time_and_space(save):
    arrays = as_published("hf_vivit")
    t, y, x = np.meshgrid(*map(np.arange, (4.0, 4.0, 4.0)), indexing="ij")
    table = arrays["vivit.embeddings.position_embeddings"]
    table[0, 1:, :3] = np.stack([t, y, x], axis=-1).reshape(64, 3)
    folder = save(arrays, GOLDENS["hf_vivit"]["about"])
    pretrained = fitted(folder, "joint", **VIVIT | dict(frames=16, image_size=96))
    row = rows(pretrained)["encoder.embedding.space"]
    assert row.how == "resized" and row.note == "positions of 4 x 4 x 4 patches"
    found = pretrained.values["encoder", "embedding", "space"]
    np.testing.assert_array_equal(found[0], table[0, 0])
    found = found[1:].reshape(8, 6, 6, -1)
    places = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)  # positions of the new tubelets between the old ones
    np.testing.assert_allclose(found[..., 0], np.broadcast_to(places[:, None, None], (8, 6, 6)), atol=1e-5)
    bicubic = resize(table[0, 1:17].reshape(4, 4, -1), (6, 6))
    np.testing.assert_allclose(found[0, ..., 3:], bicubic[..., 3:], atol=1e-5)


def test_joint_positions_need_their_number_of_frames(save):
    arrays = as_published("hf_vivit")
    assert rows(fitted(save(arrays), "joint", **VIVIT))["encoder.embedding.space"].how == "loaded"
    with pytest.raises(ConfigError, match="does not say over how many frames its 64 positions extend"):
        fitted(save(arrays), "joint", **VIVIT | dict(frames=16))
    with pytest.raises(ConfigError, match="its 64 positions do not form a square in each of 3 frames"):
        fitted(save(arrays, dict(num_frames=6)), "joint", **VIVIT)


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("vit", dict(frames=8), "its patches span 2 frames, and the patches of the model 1"),
        ("joint", VIVIT | dict(patch_frames=4), "its patches span 2 frames, and the patches of the model 4"),
        ("joint", VIVIT | dict(positions="separate"), "it has joint positions of space and time"),
        ("swin", SWIN, "the layout is that of a ViViT of Hugging Face, which does not fit this model"),
    ],
)
def test_tubelets_are_refused_by_models_with_other_patches(name, options, sentence, save):
    with pytest.raises(ConfigError, match=sentence):
        fitted(save(as_published("hf_vivit"), GOLDENS["hf_vivit"]["about"]), name, **options)


def test_a_kernel_of_images_becomes_one_of_tubelets(save):
    folder = save(arrays_of("timm_vit"))
    kernel = arrays_of("timm_vit")["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    centre, average = (
        fitted(folder, "joint", dict(tube=tube), **VIVIT | dict(frames=9, patch_frames=3))
        for tube in ("centre", "average")
    )
    found = centre.values["encoder", "embedding", "patch", "kernel"].reshape(3, *kernel.shape)
    np.testing.assert_array_equal(found, np.stack([0 * kernel, kernel, 0 * kernel]))
    found = average.values["encoder", "embedding", "patch", "kernel"].reshape(3, *kernel.shape)
    np.testing.assert_allclose(found, np.stack(3 * [kernel / 3]), rtol=1e-6)
    assert "to 3 frames, average" in rows(average)["encoder.embedding.patch.kernel"].note
    with pytest.raises(ConfigError, match="init.tube='middle' must be one of centre, average"):
        Init(tube="middle")


def test_separate_positions_are_added_to_joint_ones(save):
    arrays = arrays_of("hf_timesformer_joint")
    pretrained = fitted(save(arrays, GOLDENS["hf_timesformer_joint"]["about"]), "joint", frames=4, positions="joint")
    space, time = (arrays[f"timesformer.embeddings.{kind}_embeddings"][0] for kind in ("position", "time"))
    found = pretrained.values["encoder", "embedding", "space"]
    np.testing.assert_array_equal(found[0], space[0])
    np.testing.assert_allclose(found[1:].reshape(4, 16, -1), space[1:] + time[:, None], atol=1e-6)


def test_tubelets_answer_as_the_clip_of_their_central_frames(save, float64):
    folder, video, exact = save(arrays_of("timm_vit")), clip((2, 6, SIDE, SIDE, 3)), dict(dtype="float64")
    tubes, _ = loaded(folder, "joint", frames=6, patch_frames=2, positions="joint", **exact)
    frames, _ = loaded(folder, "joint", frames=3, **exact)
    np.testing.assert_allclose(tubes(video)[0], frames(video[:, 1::2])[0], rtol=0, atol=1e-9)
    one, _ = loaded(folder, "joint", frames=2, patch_frames=2, positions="joint", **exact)
    image, _ = loaded(folder, "vit", frames=1, **exact)
    np.testing.assert_allclose(one(video[:, :2])[0], image(video[:, 1:2])[0], rtol=0, atol=1e-9)


# TokenShift


def test_the_channels_of_tokenshift_are_swapped_only_for_shifts(save):
    folder = save(as_published("tokenshift"))
    shifted = fitted(folder, "tokenshift", frames=4).values["encoder", "class_token"]
    plain = fitted(folder, "mevit", dict(head="draw"), frames=4, motion_blocks=2).values["encoder", "class_token"]
    np.testing.assert_array_equal(shifted, np.concatenate([plain[48:96], plain[:48], plain[96:]]))
    assert any("model.fold" in remark for remark in fitted(folder, "tokenshift", frames=4).remarks)


# VTN


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("vit", dict(frames=2), r"no parameters for its layers over frames; init\.allow=\"\('time',\)\""),
        (
            "vtn",
            VTN | dict(temporal_depth=1),
            r"no parameters for its layers over frames 1 to 1; init\.allow=\"\('layers',\)",
        ),
        ("vtn", VTN | dict(temporal_depth=3), "it has 2 layers over frames, and the model needs at least 3"),
        ("vtn", VTN | dict(tie_global=True), "model.tie_global=True has none"),
        ("vtn", VTN | dict(heads=4), "trained with 3 heads, and model.heads is 4"),
        ("vtn", VTN | dict(backbone="resnet", depths=(1,), stem=4), "the layout is that of a VTN, which does not fit"),
    ],
)
def test_models_that_do_not_fit_a_vtn_refuse_it(name, options, sentence, save):
    with pytest.raises(ConfigError, match=sentence):
        fitted(save(as_published("vtn")), name, **options)


def test_a_head_is_loaded_only_for_the_features_that_it_reads(save):
    """The head of VTN reads the output of layers over frames, the head of an image model reads the class token."""
    folder = save(as_published("vtn"))
    image = fitted(folder, "vit", dict(allow=("time", "normalisation")), frames=2)
    assert "Not loaded: layers over frames." in image.remarks
    assert rows(image)["head.kernel"].how == "new" and rows(image)["encoder.class_token"].how == "loaded"
    video = fitted(save(arrays_of("timm_vit")), "vtn", **VTN)
    assert rows(video)["head.kernel"].how == "new" and rows(video)["encoder.encoder.class_token"].how == "loaded"


def test_classes_are_put_in_the_order_of_the_data_set(save):
    names = ["a b", "c", "d", "e", "f", "g", "h"]
    folder = save(as_published("vtn"), {"id2label": {str(i): name for i, name in enumerate(names)}})
    pretrained = fitted(folder, "vtn", dict(head="auto"), ["h", *names[:-1]], **VTN)
    found = pretrained.values["head", "kernel"]
    np.testing.assert_array_equal(found, np.roll(arrays_of("vtn")["mlp_head.4.weight"].T, 1, axis=1))


# Video Swin


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(window=(2, 2, 2)), r"another window than model.window=\(2, 2, 2\)"),
        (dict(window=(4, 2, 4)), r"another window than model.window=\(4, 2, 4\)"),  # a table of equal length
        (dict(depth=6, depths=(2, 4)), r"its stages have \[2, 2\] blocks, and model.depths is \[2, 4\]"),
        (dict(heads=4), "it has 2 heads where the model has 4"),
        (dict(patch_frames=1), "its patches span 2 frames, and the patches of the model 1"),
        (dict(patch_size=2), "its patches have 4 pixels a side, and model.patch_size is 2"),
        (dict(width=32), "has the shape"),
    ],
)
def test_another_swin_is_refused(options, sentence, save):
    with pytest.raises(ConfigError, match=sentence):
        fitted(save(as_published("torchvision_swin")), "swin", **SWIN | options)


def test_a_swin_is_refused_by_a_vit(save):
    with pytest.raises(
        ConfigError, match="the layout is that of a Video Swin of torchvision, which does not fit this model"
    ):
        fitted(save(as_published("torchvision_swin")), "vit", frames=8)


# DeiT


@pytest.mark.parametrize(
    "golden, token, head, layout",
    [
        ("timm_deit", "dist_token", "head_dist.weight", "DeiT, distilled"),
        ("hf_vit", "vit.embeddings.distillation_token", "distillation_classifier.weight", "DeiT of Hugging Face"),
    ],
)
def test_the_second_token_of_a_distilled_deit_is_left_out_only_when_allowed(golden, token, head, layout, save):
    arrays = arrays_of(golden)
    place = "pos_embed" if golden == "timm_deit" else "vit.embeddings.position_embeddings"
    plain = arrays[place]
    arrays[place] = np.concatenate([plain[:, :1], plain[:, :1] + 1, plain[:, 1:]], axis=1)
    arrays |= {token: draw(token, (1, 1, 192)), head: draw(head, (CLASSES, 192))}
    folder = save(arrays, GOLDENS[golden].get("about"))
    with pytest.raises(ConfigError, match=f"arrays that the model does not use: .*{token}"):
        fitted(folder, "vit", frames=1)
    pretrained = fitted(folder, "vit", dict(allow=(token, head, "normalisation")), frames=1)
    assert pretrained.layout == layout and sorted(pretrained.unused) == sorted([token, head])
    np.testing.assert_array_equal(pretrained.values["encoder", "embedding", "space"], plain[0])
