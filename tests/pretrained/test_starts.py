"""The weights from which papers start give the logits of the library that they come from, where every array counts."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from drawn import clip, draw
from flax import nnx
from tiny import quick_jit
from weights import GOLDENS, SHAPE, TIGHT, arrays_of, fitted, load_module, loaded, maker, nested, write

from vidformers.errors import ConfigError

SWIN = dict(image_size=32, patch_size=4, width=32, heads=2, depth=4, depths=(2, 2), window=(2, 4, 4))
IMAGE_SWIN = ("swin", SWIN | dict(frames=1, patch_frames=1), {})
CVT = dict(frames=1, image_size=40, patch_size=4, width=16, heads=1, depth=6, depths=(1, 2, 3), joint="none")
RESNET = dict(backbone="resnet", projection="none", frames=1, image_size=48, width=1024, heads=16, depths=(1, 2, 1))
CASES = {
    "resnet": ("vtn", RESNET, {}),
    "cvt": ("cvt", CVT | dict(gelu="quick"), {}),
    "hf_cvt": ("cvt", CVT, {}),
    "timm_swin": IMAGE_SWIN,
    "torchvision_swin2d": IMAGE_SWIN,
    "hf_swin": IMAGE_SWIN,
    "space_only": ("vit", SHAPE | dict(frames=4, frame_average="before_norm"), {}),
    "scenic_vivit": ("joint", SHAPE | dict(frames=8, patch_frames=2, positions="joint", gelu="tanh"), {}),
    "video_swin": ("swin", SWIN | dict(frames=8), {}),
}
# What adds one number to all scores of a query does not change its softmax: the bias of keys. In CvT that is also the
# mean and bias of the batch norm before the keys, but in the last stage class tokens pass by it. The last block of CvT
# convolves the queries of patches alone, and the head reads the class token alone. These arrays must change parameters.
WITHOUT_EFFECT = dict.fromkeys(CASES, "^$") | {
    "scenic_vivit": "key/bias$",
    "hf_swin": r"key\.bias$",
    "cvt": r"proj_k\.bias$|stage[01]\..*proj_k\.bn\.(bias|running_mean)$|stage2\.blocks\.2\.attn\.conv_proj_q\.",
    "hf_cvt": r"projection_key\.bias$|stages\.[01]\..*key\..*normalization\.(bias|running_mean)$"
    r"|stages\.2\.layers\.2\..*convolution_projection_query\.",
}


@pytest.fixture
def save(tmp_path):
    return partial(write, tmp_path)


def as_saved(golden):
    """Returns the arrays of a file with those that no model needs."""
    arrays = arrays_of(golden)
    for name in list(arrays):
        if "rows" in GOLDENS[golden] and name.endswith("relative_position_bias_table"):
            arrays[name.replace("bias_table", "index")] = np.array(GOLDENS[golden]["rows"])
        if name.endswith("running_var"):
            arrays[name.replace("running_var", "num_batches_tracked")] = np.array(5)
    return arrays


def compiled(golden):
    """Returns the function (loaded weights) -> logits for the golden input.

    The head of a VTN reads layers over frames. A ResNet's own head stands in its place here.
    """
    name, options, _ = CASES[golden]
    model = load_module.abstract_model(maker(name, **options))
    if is_backbone := name == "vtn":
        model = model.encoder
    graph = nnx.split(model)[0]
    video = clip((2, options["frames"], options["image_size"], options["image_size"], 3))
    run = quick_jit(lambda parameters: nnx.merge(graph, parameters)(video))

    def answer(pretrained):
        values = pretrained.values
        if not is_backbone:
            return np.asarray(run(nested(values)))
        features = run(nested({path[1:]: value for path, value in values.items()}))[:, 0]
        return features @ pretrained.file.arrays["fc.weight"].T + pretrained.file.arrays["fc.bias"]

    return answer


@pytest.mark.parametrize("golden", CASES)
def test_the_logits_are_those_of_the_library_and_any_changed_array_moves_them(golden, save, monkeypatch):
    """A changed array moves them by more than the tolerance, which would otherwise pass if the array were not read."""
    (name, options, init), folder, answer = CASES[golden], save(as_saved(golden)), compiled(golden)
    pretrained, expected = fitted(folder, name, init, **options), np.array(GOLDENS[golden]["logits"])
    before, arrays = answer(pretrained), pretrained.file.arrays
    assert expected.std() >= 1
    np.testing.assert_allclose(before, expected, **TIGHT)
    new = {row.parameter.partition(".")[0] for row in pretrained.origins if row.how != "loaded"}
    assert new == ({"readout", "head"} if name == "vtn" else set()) and not pretrained.unused
    for key in [key for key, array in arrays.items() if array.dtype.kind == "f"]:
        changed = arrays | {key: arrays[key] + np.random.default_rng(0).normal(0, 0.1, arrays[key].shape)}
        file = replace(pretrained.file, arrays=changed)
        monkeypatch.setattr(load_module, "open_file", lambda source, file=file: file)
        found = fitted(folder, name, init, **options)
        if re.search(WITHOUT_EFFECT[golden], key):
            assert any((value != pretrained.values[path]).any() for path, value in found.values.items()), key
        else:
            assert np.abs(answer(found) - before).max() > 2 * TIGHT["atol"], key


# Swin, inflated in time


def test_an_inflated_swin_gives_a_clip_of_equal_frames_the_logits_of_its_frame(save):
    """Windows of both kinds span several frames: the bias of a pair of patches does not depend on their frames."""
    folder = save(as_saved("torchvision_swin2d"))
    run, pretrained = loaded(folder, "swin", dict(tube="average"), **SWIN | dict(frames=8))
    found = run(np.repeat(clip((2, 1, 32, 32, 3)), 8, axis=1))[0]
    np.testing.assert_allclose(found, GOLDENS["torchvision_swin2d"]["logits"], **TIGHT)
    (row,) = [row for row in pretrained.origins if row.parameter == "encoder.embeddings.0.patch.kernel"]
    assert row.how == "resized" and row.note == "patch of 4 x 4 to 2 frames, average"


@pytest.mark.quick
@pytest.mark.parametrize(
    "golden, name, options, sentence",
    [
        ("torchvision_swin2d", "swin", dict(window=(2, 2, 2)), r"than model.window=\(2, 2, 2\) has in a frame"),
        ("torchvision_swin2d", "swin", dict(window=(2, 8, 2)), "its position tables are for another window"),
        ("video_swin", "swin", dict(window=(4, 2, 4)), r"another window than model.window=\(4, 2, 4\)\."),
        ("hf_swin", "swin", dict(heads=4), "it has 2 heads where the model has 4"),
        ("timm_swin", "swin", dict(depth=6, depths=(2, 4)), r"its stages have \[2, 2\] blocks"),
        ("timm_swin", "cvt", CVT, "the layout is that of a Swin of timm or its authors, which does not fit"),
        ("cvt", "swin", {}, "the layout is that of a CvT of its authors, which does not fit this model"),
        ("cvt", "cvt", CVT | dict(depth=4, depths=(1, 2, 1)), r"its stages have \[1, 2, 3\] blocks"),
        ("hf_cvt", "cvt", CVT | dict(heads=2), "trained with 1 heads in the first stage, and model.heads is 2"),
        ("hf_cvt", "cvt", CVT | dict(width=32), "has the shape"),
        ("resnet", "vtn", RESNET | dict(depths=(1, 1, 1)), r"its stages have \[1, 2, 1\] blocks"),
        ("resnet", "vtn", RESNET | dict(stem=32, width=512), "has the shape"),
        ("resnet", "vtn", dict(frames=1), "the layout is that of a ResNet of torchvision or timm, which does not fit"),
        ("resnet", "vtn", RESNET | dict(width=768), "model.width=768 must be 1024, the channels of the last stage"),
        ("resnet", "vtn", RESNET | dict(projection="mean"), "model.projection='mean' must be linear or none"),
        ("cvt", "cvt", CVT | dict(gelu="tanh"), "model.gelu='tanh' must be one of exact, quick"),
    ],
)
def test_another_model_refuses_the_weights(golden, name, options, sentence, save):
    fields = (SWIN | dict(frames=8) if name == "swin" else {}) | options
    with pytest.raises(ConfigError, match=sentence):
        fitted(save(as_saved(golden), {"num_heads": [1, 3, 6]}), name, **fields)


ATTENTION = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0"


@pytest.mark.quick
@pytest.mark.parametrize(
    "golden, name, change, sentence",
    [
        ("resnet", "layer2.0.bn2.weight", lambda a: a[:1], "has the shape (1,), where its layout has (128,)"),
        ("cvt", "stage1.blocks.0.attn.conv_proj_k.bn.bias", lambda a: a[:1], "has the shape (1,), where its layout"),
        ("resnet", "bn1.running_var", np.negative, "the array 'bn1.running_var' holds negative numbers"),
        ("scenic_vivit", f"{ATTENTION}/out/kernel", np.transpose, "(192, 64, 3), where its layout has (3, 64, 192)"),
        ("scenic_vivit", f"{ATTENTION}/key/bias", np.transpose, "has the shape (64, 3), where its layout has (3, 64)"),
        ("scenic_vivit", f"{ATTENTION}/query/kernel", lambda a: a.reshape(192, -1), "of shape (192, 192), without"),
        ("scenic_vivit", "embedding/kernel", lambda a: a[None], "the kernel of its patches has 6 axes"),
    ],
)
def test_arrays_that_would_be_broadcast_or_reshaped_are_refused(golden, name, change, sentence, save):
    model, options, _ = CASES[golden]
    arrays = arrays_of(golden)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        fitted(save(arrays | {name: np.asarray(change(arrays[name]))}), model, **options)


@pytest.mark.quick
@pytest.mark.parametrize(
    "golden, metadata, sentence",
    [
        ("hf_cvt", dict(image_mean="half"), "image_mean='half' in the config.json or preprocessor_config.json beside"),
        ("hf_cvt", dict(pretrained_cfg=dict(mean=[0.5], std=[0.5])), "mean=[0.5] in the config.json or"),
        ("scenic_vivit", dict(num_frames="8"), "num_frames='8' in the config.json beside the file must be a positive"),
        ("space_only", dict(num_attention_heads=0), "num_attention_heads=0 in the config.json beside the file must"),
    ],
)
def test_damaged_values_beside_the_file_are_named(golden, metadata, sentence, save):
    name, options, init = CASES[golden]
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        fitted(save(arrays_of(golden), metadata), name, init, **options)


@pytest.mark.quick
def test_one_number_beside_the_file_normalises_all_channels_and_half_a_normalisation_none(save):
    name, options, _ = CASES["hf_cvt"]
    for metadata, mean in ((dict(image_mean=0.5, image_std=0.5), 0.5), (dict(image_mean=[0.5] * 3), 0.485)):
        with pytest.raises(ConfigError, match=re.escape(f"model.mean=({mean}, ")):
            fitted(save(arrays_of("hf_cvt"), metadata), name, dict(allow=()), **options | dict(mean=(0.4,) * 3))


@pytest.mark.quick
@pytest.mark.parametrize("golden", ["resnet", "hf_cvt", "timm_swin"])
def test_weights_for_blue_green_red_have_their_channels_reversed(golden, save):
    name, options, _ = CASES[golden]
    path = {
        "resnet": ("encoder", "encoder", "stem", "convolution"),
        "hf_cvt": ("encoder", "embeddings", 0, "convolution"),
    }
    path = (*path.get(golden, ("encoder", "embeddings", 0, "patch")), "kernel")
    folder = save(as_saved(golden))
    rgb, bgr = (fitted(folder, name, dict(channels=order), **options).values[path] for order in ("rgb", "bgr"))
    shape = (-1, 3, rgb.shape[-1])  # (t) y x, c, d
    np.testing.assert_array_equal(bgr.reshape(shape), rgb.reshape(shape)[:, ::-1])
    reversed_imagenet = dict(mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))
    fitted(folder, name, dict(channels="bgr", allow=()), **options | reversed_imagenet)
    with pytest.raises(ConfigError, match=r"normalised with model.mean=\(0\.406, 0\.456, 0\.485\)"):
        fitted(folder, name, dict(channels="bgr", allow=()), **options)


# TimeSformer


def remarks_of(golden, save, name, init=None, change=None, **options):
    arrays = arrays_of(golden)
    for key, rows in (change or {}).items():
        arrays[key] = np.resize(arrays[key], (rows, *arrays[key].shape[1:]))
    return " ".join(fitted(save(arrays), name, dict(head="draw") | (init or {}), **options).remarks)


@pytest.mark.quick
def test_a_space_only_timesformer_cannot_be_told_from_a_vit_so_a_remark_names_the_field(save):
    """Only a ViT over several frames could be one."""
    assert "model.frame_average=before_norm" in remarks_of("space_only", save, "vit", frames=4)
    for name, options in (
        ("vit", dict(frames=1)),
        ("vit", dict(frames=4, frame_average="before_norm")),
        ("tokenshift", dict(frames=4)),
        ("msca", dict(frames=4)),
        ("timesformer", dict(frames=4)),
    ):
        assert "frame_average" not in remarks_of("space_only", save, name, **options), name
    with pytest.raises(ConfigError, match="model.frame_average='first' must be after_norm or before_norm"):
        remarks_of("space_only", save, "vit", frame_average="first")


@pytest.mark.quick
@pytest.mark.parametrize("golden", ["hf_timesformer", "hf_timesformer_joint"])
@pytest.mark.parametrize(
    "classes, channels, hint",
    [(174, "rgb", "init.channels=bgr. It is rgb"), (174, "bgr", None), (400, "bgr", "init.channels=rgb. It is bgr")]
    + [(600, "rgb", None), (7, "rgb", "for SSv2 expect init.channels=bgr, and those for Kinetics init.channels=rgb")],
)
def test_a_hint_names_the_channels_that_timesformers_data_sets_want(golden, classes, channels, hint, save):
    change = {"classifier.weight": classes, "classifier.bias": classes}
    name = "joint" if golden.endswith("joint") else "timesformer"
    found = remarks_of(golden, save, name, dict(channels=channels), change, frames=4)
    assert hint in found if hint else "init.channels" not in found


@pytest.mark.quick
@pytest.mark.parametrize(
    "golden, name, options",
    [
        ("hf_timesformer", "timesformer", dict(frames=4)),
        ("hf_timesformer_joint", "joint", dict(frames=4)),
        ("timesformer_joint", "joint", dict(frames=4)),
        ("vtn", "vtn", dict(frames=7, window=(4,), temporal_depth=2)),
        ("resnet", "vtn", RESNET),
        ("hf_cvt", "cvt", CVT),
        ("timm_swin", "swin", SWIN | dict(frames=8)),
    ],
)
def test_weights_refuse_another_normalisation_than_theirs(golden, name, options, save):
    """The names in the file alone tell how the authors normalised pixels: no config.json is beside the file."""
    arrays = arrays_of("timm_vit" if golden == "timesformer_joint" else golden)
    if golden == "timesformer_joint":  # its authors' names are those of timm's ViT, and positions of the frames
        arrays["time_embed"] = draw("time_embed", (1, 4, 192))
    folder, imagenet = save(arrays), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    right = imagenet if golden in ("resnet", "hf_cvt", "timm_swin") else ((0.45,) * 3, (0.225,) * 3)
    fitted(folder, name, dict(allow=(), head="draw"), mean=right[0], std=right[1], **options)
    with pytest.raises(ConfigError, match=re.escape(f"model.mean={right[0]} and model.std={right[1]}")):
        fitted(folder, name, dict(allow=(), head="draw"), mean=(0.5,) * 3, std=(0.5,) * 3, **options)
