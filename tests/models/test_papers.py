"""Every model of the papers against a forward pass in NumPy, written from the equations (tests/papers), in float64.

The rows of the papers' tables have the numbers that the tables print, in models of tiny width. A parameter of a model
that its equations do not have would show as an error, since all are random.
"""

import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from papers import havit, layers, mevit, msca, pyramids, stat, timesformer, vtn
from tiny import clips, make, quick_jit

BOUNDARIES = ("keep", "zero", "wrap")
GRID_3 = dict(frames=3, image_size=6, patch_size=2, width=16, heads=4, depth=2)  # 3 x 3 patches
GRID_14 = dict(frames=2, image_size=14, patch_size=1, width=12, heads=12, depth=1)  # 14 x 14 patches and 12 heads
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
MOVED = ("Q", "K", "V", "QK", "KV", "QV", "QKV")


def row(title, **options):
    return pytest.param(options, id=title)


def assert_agrees(reference, name, geometry, options):
    """Checks the logits of a model with random parameters against reference(parameters, clip, **fields)."""
    fields = geometry | options
    graph, parameters = make(name, dtype="float64", mean=MEAN, std=STD, **fields)
    parameters = jax.tree.map(np.float64, parameters)
    video = clips(1, frames=fields["frames"], size=fields["image_size"])
    found = quick_jit(lambda p, video: nnx.merge(graph, p)(video))(parameters, video)
    known = inspect.signature(reference).parameters
    known_fields = {field: value for field, value in fields.items() if field in known}
    expected = reference(parameters, (video[0] / 255 - MEAN) / STD, **known_fields)
    assert found.dtype == np.float64 and found.shape == (1, 5) and np.std(expected) > 0.1
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-12)


@pytest.mark.quick
def test_the_references_share_no_module_with_the_library():
    for path in Path(layers.__file__).parent.glob("*.py"):
        modules = re.findall(r"^(?:from|import) (\w+)", path.read_text(), flags=re.M)
        assert modules and set(modules) <= {"itertools", "math", "numpy", "papers"}, path


@pytest.fixture(autouse=True)
def double_precision(float64):
    """All tests of this file run in float64."""


@pytest.mark.parametrize(
    "options",
    [
        *[
            row(f"table 1, block size {m}", block_size=m, motion_blocks=1, class_blocks=0, **GRID_14 | dict(heads=2))
            for m in (1, 2, 3, 7, 14)
        ],
        *[
            row(f"table 2, {sa}+{ca}", depth=sa, motion_blocks=sa - 4, class_blocks=ca)
            for sa, ca in ((9, 3), (10, 2), (11, 1), (12, 1))
        ],
        *[row(f"table 3, L_t {n}", depth=12, motion_blocks=n, class_blocks=0) for n in (0, 2, 4, 8, 12)],
        row("space before motion", motion_blocks=2, class_blocks=0, order="space_motion", class_queries_motion=True),
        row("as TimeSformer", motion_blocks=1, class_blocks=0, class_in_motion=False, temporal_fc=True),
        row("ViViT's patches of two frames", frames=4, patch_frames=2, motion_blocks=1),
    ],
)
def test_mevit(options):
    assert_agrees(mevit.logits, "mevit", GRID_3, options)


@pytest.mark.parametrize(
    "options",
    [
        row("table 5, simplified", hybrid="simplified"),
        row("table 5, multi-view", hybrid="multi_view"),
        row("table 5, combined-correlation; table 6, divided; table 7, ViT with"),
        row("table 6, joint", attention="joint"),
        row("table 6, linear activation", attention="joint", kernel="relu"),
        row("table 6, cosine re-weighting", attention="joint", kernel="cosine"),
        row("table 7, ViT without", dictionary=0),
        row("split heads, cosine of frames", kernel="cosine", cosine_index="t", hybrid="split_heads"),
        row("class token at the input", attention="joint", kernel="relu", hybrid="simplified", class_token="input"),
        row("one dictionary for time and one for space", dictionary_per="model"),
        row(
            "eq. 6, one dictionary in all",
            external_mlp=True,
            hybrid="simplified",
            dictionary_per="model",
            share_dictionary=True,
        ),
        row("eq. 6, multi-view, joint", external_mlp=True, hybrid="multi_view", attention="joint"),
        row("eq. 6, split heads", external_mlp=True, hybrid="split_heads", depth=1),
        row("one dictionary a block", class_token="input", temporal_fc=True, share_dictionary=True, class_blocks=0),
    ],
)
def test_havit(options):
    assert_agrees(havit.logits, "havit", GRID_3 | dict(dictionary=3), options)


@pytest.mark.parametrize("options", [row("without", dictionary=0), row("with", dictionary=3)])
def test_swin_of_havit_s_table_7(options):
    geometry = dict(frames=4, image_size=12, patch_size=2, patch_frames=1, depths=(2,), window=(2, 2, 3))
    assert_agrees(pyramids.swin, "swin", geometry | dict(width=8, heads=2, depth=2), options)


@pytest.mark.parametrize(
    "options", [row("without", joint="none", scale="heads"), row("with", dictionary=3, heads=2, gelu="quick")]
)
def test_cvt_of_havit_s_table_7(options):
    geometry = dict(frames=2, image_size=16, patch_size=4, depths=(1, 1, 2), width=4, heads=1, depth=4, dictionary=0)
    assert_agrees(pyramids.cvt, "cvt", geometry, options)


PRINTED = dict(depths=(1,), patch_size=32, image_size=64, frames=12)


@pytest.mark.parametrize(
    "options",
    [
        row("table 1, CA", window=1, long_key="none"),
        row("table 1, CA+SA", long_key="none"),
        row("table 1, CA+LA", window=1),
        row("table 1, CA+SA+LA; table 2, t_o 3; table 3, class token"),
        *[row(f"table 2, t_o {window}", window=window) for window in (5, 7, 9)],
        row("table 3, avg-pooling", long_key="mean"),
        row("table 3, avg-pooling without class tokens", long_key="mean", frame_token="mean"),
        *[row(f"table 4, l_ta {n}", depths=(1,), aggregation_layers=n) for n in (0, 2, 4)],
        row("table 4, l_ta 1; table 5, 3 convolutions; three stages", depths=(1, 2, 2), image_size=64),
        row("no norm after pooling", pool_norm="none"),
        row("MViT's norms after pooling", pool_norm="mvit", depths=(1, 2), image_size=32),
        row("table 5, 1 convolution", depths=(1,), stem_convs=1, patch_size=4),
        row("table 5, 5 convolutions", depths=(1,), stem_convs=5),
        row("table 5, 5 convolutions as printed", stem_convs=5, stem_strides="literal", **PRINTED),
    ],
)
def test_stat(options):
    geometry = dict(frames=10, image_size=40, patch_size=8, width=16, heads=2, depths=(2,))
    fields = geometry | options
    assert_agrees(stat.logits, "stat", geometry, options | dict(depth=sum(fields["depths"])))


@pytest.mark.parametrize(
    "options",
    [
        *[row(f"table 1, {2 * n} heads", before=n, after=n, **GRID_14) for n in (0, 1, 2, 3, 4)],
        *[row(f"table 2, {moved}", moved=moved, before=2) for moved in MOVED],
        *[row(f"table 3, {m} blocks", depth=12, shifted_blocks=m) for m in (0, 4, 8, 12)],
        *[
            row(f"table 4, {2 * n} patches", direction="patches", before=n, after=n, **GRID_14)
            for n in (4, 8, 16, 24, 32)
        ],
        *[row(f"table 5, p{moved}", direction="patches", moved=moved, before=3, after=2) for moved in MOVED],
        *[row(f"boundary {boundary}", moved="QKV", boundary=boundary) for boundary in BOUNDARIES[1:]],
        row("as its authors' code", before=2, boundary="zero", placement="ends"),
        *[
            row(f"patches, boundary {boundary}", direction="patches", before=3, boundary=boundary)
            for boundary in BOUNDARIES[1:]
        ],
    ],
)
def test_msca(options):
    assert_agrees(msca.msca, "msca", GRID_3, options)


@pytest.mark.quick
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_tokenshift_of_msca_s_tables_2_and_5(boundary):
    assert_agrees(msca.tokenshift, "tokenshift", GRID_3, dict(boundary=boundary))


@pytest.mark.quick
@pytest.mark.parametrize(
    "options", [row("MSCA's tables"), row("TimeSformer's space only", frame_average="before_norm")]
)
def test_vit(options):
    assert_agrees(msca.vit, "vit", GRID_3, options)


@pytest.mark.quick
def test_timesformer():
    assert_agrees(timesformer.divided, "timesformer", GRID_3, {})


@pytest.mark.parametrize(
    "options", [row("TimeSformer"), row("ViViT", frames=4, patch_frames=2, positions="joint", gelu="tanh")]
)
def test_joint(options):
    assert_agrees(timesformer.joint, "joint", GRID_3, options)


VTN = GRID_3 | dict(frames=7, temporal_depth=2, window=(4,))
RESNET = dict(backbone="resnet", image_size=20, depths=(1, 1), temporal_depth=1)


@pytest.mark.parametrize(
    "options",
    [
        row("ViT"),
        row("ResNet, one layer", stem=4, **RESNET),
        row("ResNet without a linear map", stem=2, projection="none", **RESNET),
        row("three layers, growing windows", temporal_depth=3, window=(4, 6, 8)),
        row("shared projections, a dictionary", tie_global=True, dictionary=3),
    ],
)
def test_vtn(options):
    assert_agrees(vtn.logits, "vtn", VTN, options)


def test_vtn_with_padding_and_positions_beyond_its_table():
    graph, parameters = make("vtn", dtype="float64", **VTN)
    parameters = jax.tree.map(np.float64, parameters)
    features = np.random.default_rng(0).normal(size=(7, 16))
    positions, mask = np.arange(7) * 53, np.array([1, 1, 0, 1, 1, 0, 1], bool)  # the last one is 318

    def run(parameters, features):
        return nnx.merge(graph, parameters).readout(features[None], None, positions[None], mask[None])

    expected = vtn.readout(parameters["readout"], features, positions, mask, heads=4, window=(4,))
    np.testing.assert_allclose(quick_jit(run)(parameters, features)[0], expected, rtol=0, atol=1e-12)
