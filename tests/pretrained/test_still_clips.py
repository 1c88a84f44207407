"""Which models that start from image weights see a still clip as an image model sees the image: as the account says."""

import json
from functools import cache

import jax
import numpy as np
import pytest
from drawn import clip
from flax import nnx
from tiny import quick_jit
from weights import SIDE, arrays_of, loaded, started, write

FRAMES, EXACT = 3, dict(dtype="float64")
EARLY = dict(class_blocks=0, motion_blocks=2)
INPUT = dict(class_blocks=0, class_token="input")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("image"), arrays_of("timm_vit"))


@pytest.fixture(scope="module")
def of_image(folder):
    """(logits, features) of the image model."""
    with jax.enable_x64(True):
        run, pretrained = loaded(folder, "vit", frames=1, **EXACT)
        assert pretrained.still == []
        return run(image())


@cache
def image():
    return clip((2, SIDE, SIDE, 3))[:, None]


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit", {}),
        ("timesformer", dict(starts_as_image=False)),
        ("mevit", EARLY),
        ("mevit", EARLY | dict(temporal_fc=True, class_queries_motion=True)),
        ("mevit", EARLY | dict(order="space_motion")),
        ("havit", INPUT),
        ("havit", INPUT | dict(dictionary=4, hybrid="multi_view")),
        ("msca", {}),
        ("msca", dict(direction="patches", boundary="wrap")),
        ("tokenshift", dict(boundary="keep")),
        ("joint", dict(frames=1)),
        ("joint", dict(patch_frames=FRAMES, positions="joint")),
    ],
)
def test_a_still_clip_is_answered_as_the_image(name, options, folder, of_image, float64):
    options = dict(frames=FRAMES) | EXACT | options
    run, pretrained = loaded(folder, name, **options)
    np.testing.assert_allclose(run(np.repeat(image(), options["frames"], axis=1))[0], of_image[0], rtol=0, atol=1e-9)
    assert pretrained.still == [] and json.loads(pretrained.report())["starts_as_image_model"] is True
    new = [row for row in pretrained.rows if row.how == "new"]
    assert all(row.note == "zero" or "extra" in row.parameter or "dictionary" in row.parameter for row in new)


@pytest.mark.parametrize(
    "name, options, time, why",
    [
        ("joint", {}, "zero", "each patch is a key once for every frame, the class token once"),
        ("mevit", dict(motion_blocks=2), "zero", "its class token enters late"),
        ("havit", INPUT | dict(dictionary=4), "zero", "its dictionary is drawn"),
        ("havit", INPUT | dict(kernel="relu"), "zero", "has the kernel relu"),
        ("havit", INPUT | dict(attention="joint"), "zero", "the class token once"),
        ("msca", dict(boundary="zero"), "zero", "beyond the ends of the clip are zeros"),
        ("tokenshift", {}, "zero", "beyond the ends of the clip are zeros"),
        ("mevit", EARLY, "copy", "its positions of frames are drawn"),
        ("mevit", EARLY, "draw", "its attention over time is no silent one"),
    ],
)
def test_where_a_still_clip_is_not_the_image_the_account_says_why(name, options, time, why, folder, of_image, float64):
    run, pretrained = loaded(folder, name, dict(time=time), frames=FRAMES, **EXACT, **options)
    assert np.abs(run(np.repeat(image(), FRAMES, axis=1))[0] - of_image[0]).max() > 1e-2
    assert json.loads(pretrained.report())["starts_as_image_model"] is False
    assert any(why in reason for reason in pretrained.still)
    assert any(why in remark for remark in pretrained.remarks)


def test_the_backbone_of_vtn_sees_each_frame_as_the_image_model(folder, of_image, float64):
    graph, parameters, pretrained = started(folder, "vtn", frames=FRAMES, window=(4,), temporal_depth=1, **EXACT)
    found = quick_jit(lambda video: nnx.merge(graph, parameters).encoder(video))(np.repeat(image(), FRAMES, axis=1))
    for frame in range(FRAMES):
        np.testing.assert_allclose(found[:, frame], of_image[1], rtol=0, atol=1e-9)
    (reason,) = pretrained.still
    assert "its layers over frames are drawn" in reason
    assert any(row.parameter.startswith("readout") and row.how == "new" for row in pretrained.rows)
