"""Models that start from an image model have its features on a still clip, exactly where the report says so."""

import json
from dataclasses import dataclass
from functools import cache, partial

import jax
import numpy as np
import pytest
from drawn import clip
from einops import rearrange
from flax import nnx
from schemes import PATCH, SCHEMES, is_per_frame, required_options, scheme_model
from tiny import quick_jit
from weights import abstract_model, fitted, loaded, maker, runner, start, tiny_vit, write

from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.motion import Motion
from vidformers.attention.scheme import Scheme
from vidformers.attention.time import Time
from vidformers.errors import ConfigError
from vidformers.models.config import ModelConfig
from vidformers.pretrained import Init, load
from vidformers.pretrained.roles import Coverage, Role, block_roles, coverage, sublayer_role

FRAMES, SIDE = 3, 16
MODEL = dict(dtype="float64", image_size=SIDE, patch_size=4, width=16, heads=2, depth=2)
EARLY = dict(class_blocks=0, motion_blocks=2)
INPUT = dict(class_blocks=0, class_token="input")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("image"), tiny_vit(depth=2, patches=16, patch_size=4, classes=7))


@pytest.fixture(scope="module")
def image_answers(folder):
    """(logits, features) of the image model."""
    with jax.enable_x64(True):
        run, pretrained = loaded(folder, "vit", frames=1, **MODEL)
        assert pretrained.still_clip_differences == []
        return run(image())


@cache
def image(side=SIDE):
    return clip((2, side, side, 3))[:, None]


def still(frames, side=SIDE):
    return np.repeat(image(side), frames, axis=1)


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param("vit", {}, marks=pytest.mark.quick),
        ("timesformer", dict(starts_as_image=False)),
        ("mevit", EARLY | dict(temporal_fc=True, class_queries_motion=True)),
        ("mevit", EARLY | dict(order="space_motion")),
        ("havit", INPUT | dict(dictionary=4, hybrid="multi_view", dictionary_per="model", external_mlp=True)),
        ("msca", {}),
        ("msca", dict(direction="patches", boundary="wrap")),
        ("tokenshift", dict(boundary="keep")),
        ("joint", dict(frames=1)),
        ("joint", dict(patch_frames=FRAMES, positions="joint")),
    ],
)
def test_a_still_clip_gets_the_answers_of_the_image(name, options, folder, image_answers, float64):
    options = dict(frames=FRAMES) | MODEL | options
    run, pretrained = loaded(folder, name, **options)
    np.testing.assert_allclose(run(still(options["frames"]))[0], image_answers[0], rtol=0, atol=1e-9)
    assert pretrained.still_clip_differences == []
    assert json.loads(pretrained.report())["starts_as_image_model"] is True
    new = [row for row in pretrained.origins if row.how == "new"]
    assert all(row.note == "zero" or "extra" in row.parameter or "dictionary" in row.parameter for row in new)


@pytest.mark.parametrize(
    "name, options, time, reason",
    [
        ("joint", {}, "zero", f"in its attention each patch is a key {FRAMES} times, but the class token only once"),
        ("mevit", dict(motion_blocks=2), "zero", "its class token joins the patches only after the first layers"),
        ("mevit", dict(motion_blocks=2), "zero", "its class attention is randomly initialised"),
        ("havit", dict(dictionary=4), "zero", "its class token joins the patches only after the first layers"),
        ("havit", INPUT | dict(dictionary=4), "zero", "its dictionary is randomly initialised"),
        ("havit", INPUT | dict(kernel="relu"), "zero", "has the kernel relu"),
        ("havit", INPUT | dict(attention="joint"), "zero", "the class token only once"),
        ("msca", dict(boundary="zero"), "zero", "it reads zeros beyond the ends of the clip"),
        ("tokenshift", {}, "zero", "it reads zeros beyond the ends of the clip"),
        ("mevit", EARLY, "copy", "its positions of frames are randomly initialised"),
        ("mevit", EARLY, "draw", "its attention that the image model lacks does not start with an output of zero"),
    ],
)
def test_the_report_says_why_a_still_clip_gets_other_answers(
    name, options, time, reason, folder, image_answers, float64
):
    run, pretrained = loaded_once(folder, name, time, **MODEL | options)
    assert np.abs(run(still(FRAMES))[0] - image_answers[0]).max() > 1e-2
    assert json.loads(pretrained.report())["starts_as_image_model"] is False
    assert any(reason in difference for difference in pretrained.still_clip_differences)
    assert any(reason in remark for remark in pretrained.remarks)


@cache
def loaded_once(folder, name, time, **options):
    return loaded(folder, name, dict(time=time), frames=FRAMES, **options)


def test_the_backbone_of_vtn_sees_each_frame_as_the_image_model(folder, image_answers, float64):
    options = MODEL | dict(frames=FRAMES, window=(4,), temporal_depth=1)
    pretrained = fitted(folder, "vtn", **options)
    graph, parameters = start(maker("vtn", **options), pretrained)
    features = quick_jit(lambda video: nnx.merge(graph, parameters).encoder(video))(still(FRAMES))
    for frame in range(FRAMES):
        np.testing.assert_allclose(features[:, frame], image_answers[1], rtol=0, atol=1e-9)
    (reason,) = pretrained.still_clip_differences
    assert "its layers over frames are randomly initialised" in reason
    assert any(row.parameter.startswith("readout") and row.how == "new" for row in pretrained.origins)


# Schemes that the package does not have


@dataclass(frozen=True)
class Rows(Scheme):
    """Patch (y, x, t) sees every patch of its row, in every frame."""

    group_extent = "time"

    def fold(self, patches, grid):
        return rearrange(patches, "b t (y x) d -> b y (t x) d", y=grid[1])

    def unfold(self, groups, grid):
        return rearrange(groups, "b y (t x) d -> b t (y x) d", t=grid[0])

    def visible(self, query, key):
        return query.y == key.y


@dataclass(frozen=True)
class FrameRows(Scheme):
    """Patch (y, x, t) sees every patch of its row in its own frame."""

    def fold(self, patches, grid):
        return rearrange(patches, "b t (y x) d -> b (t y) x d", y=grid[1])

    def unfold(self, groups, grid):
        return rearrange(groups, "b (t y) x d -> b t (y x) d", t=grid[0])

    def visible(self, query, key):
        return (query.t == key.t) & (query.y == key.y)


@cache
def block_maker(*schemes, temporal_init=None, **options):
    """Returns make_model(rngs=...) of a model whose blocks have an attention for each scheme, then an MLP."""
    config = ModelConfig(num_classes=7, **dict(frames=FRAMES) | MODEL | options)
    stage = config.stage(config.depth, *map(config.attention, schemes), config.mlp())
    return partial(config.classifier, stage, temporal_init=temporal_init)


def load_into(make_model, weights, **init):
    return load(Init(weights=weights, allow=("normalisation",), head="as_is", **init), make_model)


@pytest.mark.parametrize("scheme, role", [(Rows(), Role.TIME), (FrameRows(), Role.EXTRA)])
@pytest.mark.parametrize("time", ["zero", "copy", "draw"])
def test_the_report_is_right_for_a_scheme_that_the_loader_does_not_know(
    scheme, role, time, folder, image_answers, float64
):
    make_model = block_maker(scheme, Frame())
    block = abstract_model(make_model).encoder.stages[0].layers.sublayers
    assert block_roles(list(block), (FRAMES, 4, 4)) == [role, Role.IMAGE, Role.MLP]
    pretrained = load_into(make_model, folder, time=time)
    apart = np.abs(runner(make_model, pretrained)(still(FRAMES))[1] - image_answers[1]).max()
    rows = {row.parameter.partition("sublayers.")[2]: row for row in pretrained.origins}
    if time == "zero":
        assert apart < 1e-9 and pretrained.still_clip_differences == []
        assert rows["0.out.kernel"].note == "zero" and rows["0.qkv.kernel"].how == "loaded"
    else:
        assert apart > 1e-2
        (reason,) = pretrained.still_clip_differences
        assert "attention that the image model lacks does not start with an output of zero" in reason
        assert {rows[f"0.{name}.kernel"].how for name in ("out", "qkv")} == {"loaded" if time == "copy" else "new"}


@pytest.mark.quick
def test_only_attention_across_frames_takes_the_weights_of_attention_over_time(tmp_path):
    arrays = tiny_vit(depth=2, patches=16, patch_size=4, classes=7)
    names = {"temporal_norm1": "norm1", "temporal_attn.qkv": "attn.qkv"}
    names |= {"temporal_attn.proj": "attn.proj", "temporal_fc": "attn.proj"}
    for name, source in names.items():
        for i in range(2):
            for kind_of_array in ("weight", "bias"):
                arrays[f"blocks.{i}.{name}.{kind_of_array}"] = arrays[f"blocks.{i}.{source}.{kind_of_array}"]
    weights = write(tmp_path, arrays)
    rows = {row.parameter: row.note for row in load_into(block_maker(Rows(), Frame()), weights).origins}
    assert rows["encoder.stages.0.layers.sublayers.0.qkv.kernel"] == "layers 0 to 1, time.qkv.kernel"
    assert rows["encoder.stages.0.layers.sublayers.1.qkv.kernel"] == "layers 0 to 1, space.qkv.kernel"
    with pytest.raises(ConfigError, match="no parameters for its attention over time"):
        load_into(block_maker(FrameRows(), Frame()), weights)


def square_fields(rows):
    """Two layers: in the first one, the class token attends to the frame alone where patches attend to more frames."""
    return dict(num_classes=5, width=16, heads=4, depth=2, patch_size=PATCH, image_size=PATCH * rows, dtype="float64")


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """Returns a cached function: rows of patches -> (weights of an image model, its features of the image)."""

    @cache
    def weights_and_features(rows):
        weights = write(
            tmp_path_factory.mktemp("square"), tiny_vit(depth=2, patches=rows**2, patch_size=PATCH, classes=5)
        )
        make_model = maker("vit", frames=1, **square_fields(rows))
        return weights, runner(make_model, load_into(make_model, weights))(image(PATCH * rows))[1]

    return weights_and_features


@pytest.mark.parametrize("entry", SCHEMES.values(), ids=lambda entry: entry.name)
@pytest.mark.parametrize("with_frame", [False, True], ids=["alone", "before frame attention"])
def test_the_report_is_right_for_every_registered_scheme(entry, with_frame, square, float64):
    frames, rows, _ = entry.grid
    weights, expected = square(rows)
    make_model = scheme_model(entry, dtype="float64")
    if with_frame:
        config = ModelConfig(frames=frames, **square_fields(rows))
        attention = config.attention(entry.make(), **required_options(entry.make()))
        stage = config.stage(config.depth, attention, config.attention(Frame()), config.mlp())
        make_model = partial(config.classifier, stage, temporal_init=None, class_per_frame=is_per_frame(entry))
    pretrained = load_into(make_model, weights)
    features = runner(make_model, pretrained)(still(frames, PATCH * rows))[1]
    apart = np.abs(features - expected).max()
    assert apart > 1e-2 if pretrained.still_clip_differences else apart < 1e-9
    assert not with_frame or not pretrained.still_clip_differences


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(class_keys=False, class_queries=False), "its class token is not a key of the attention"),
        (dict(class_queries=False), "its class token is not a query of the attention"),
        (dict(extra_projection=True), "the extra projection after its attention starts at zero"),
    ],
)
def test_the_attention_within_a_frame_must_have_the_options_of_an_image_model(options, reason, square, float64):
    weights, expected = square(3)
    make_model = scheme_model(SCHEMES["frame"], attention=options, dtype="float64")
    pretrained = load_into(make_model, weights)
    assert np.abs(runner(make_model, pretrained)(still(4, 3 * PATCH))[1] - expected).max() > 1e-2
    assert reason in pretrained.still_clip_differences


# The parts of the decision


@pytest.mark.quick
def test_coverage_counts_how_often_each_patch_of_a_frame_is_read():
    grid = (3, 4, 4)
    assert coverage(Frame(), grid) == Coverage((1,), False)
    assert coverage(Joint(), grid) == Coverage((3,), True)
    assert coverage(Motion(4), grid) == Coverage((3,), True), "blocks as large as the frame"
    assert coverage(Time(), grid) == coverage(Motion(2), grid) == coverage(Rows(), grid) == Coverage((), True)
    assert coverage(FrameRows(), grid) == Coverage((), False)


@pytest.mark.quick
def test_one_attention_of_a_block_takes_the_role_of_the_attention_within_a_frame():
    def roles(*schemes, frames=FRAMES):
        make_model = block_maker(*schemes, frames=frames)
        model = abstract_model(make_model)
        return block_roles(list(model.encoder.stages[0].layers.sublayers), model.encoder.embedding.grid)

    assert roles(Joint()) == [Role.IMAGE, Role.MLP]
    assert roles(Joint(), Frame()) == roles(Motion(4), Frame(), frames=1) == [Role.TIME, Role.IMAGE, Role.MLP]
    assert roles(Frame(), Frame()) == [Role.IMAGE, Role.EXTRA, Role.MLP]
    assert roles(Time()) == [Role.TIME, Role.MLP]


@pytest.mark.quick
def test_a_sublayer_without_a_role_is_refused():
    with pytest.raises(ConfigError, match="the model has a object, for which .* registers no role"):
        sublayer_role(object())
