"""STAT: its size and cost against the paper's tables, its grids, and its masked form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sublayers import count_parameters
from tiny import clips, compiled, make, maker, quick_jit, randomise

from vidformers import ConfigError, build
from vidformers.models.encoder import Classifier
from vidformers.models.stat import Stem
from vidformers.models.summary import summarise

# The modules of Table 1 beside current attention.
CURRENT, SHORT, LONG = dict(window=1, long_key="none"), dict(long_key="none"), dict(window=1)


# Size and cost


def published(**options):
    """make_model of STAT for Kinetics-400."""
    depth = sum(options.get("depths", (2, 11, 2)))
    return partial(build, "stat", **{**dict(num_classes=400, frames=16, depth=depth), **options})


@pytest.mark.parametrize(
    "options, params",
    [
        (dict(aggregation_layers=0), 36_968_752),
        (dict(aggregation_layers=2), 51_146_800),
        (dict(aggregation_layers=4), 65_322_544),
        (dict(long_key="mean"), 44_058_928),
        (dict(pool_norm="none"), 44_058_928 - 4 * (2 * 192 + 11 * 384 + 2 * 768)),
        (dict(pool_norm="mvit"), 44_058_928 - 4 * (2 * 192 + 11 * 384 + 2 * 768) + (15 * 4 + 2 * 2) * 96),
    ],
    ids=str,
)
def test_aggregation_layers_alone_make_the_size(options, params):
    """tests/commands/test_configs.py counts one layer, at 16, 32 and 64 frames."""
    assert count_parameters(lambda: published(**options)(rngs=nnx.Rngs(0))) == params


@pytest.mark.parametrize(
    "options, gmacs",
    [
        (CURRENT, 58.00),
        (SHORT, 58.74),
        (LONG, 58.155),
        *[(dict(frames=32, window=w), g) for w, g in ((3, 118.09), (7, 121.05), (9, 122.53))],
        (dict(frames=64, window=5), 240.38),
    ],
    ids=str,
)
def test_cost_agrees_with_tables_1_2_and_6(options, gmacs):
    """tests/commands/test_configs.py counts the other rows."""
    summary = summarise(published(**options))
    assert summary.macs_per_view / 1e9 == pytest.approx(gmacs, abs=0.006)
    if "frames" not in options:
        assert summary.params == 44_058_928, "what is read changes no parameter"


@pytest.mark.parametrize(
    "options",
    [
        dict(stem_convs=1, patch_size=4),
        dict(stem_convs=5, depths=(2, 6, 3)),
        dict(stem_convs=5, stem_strides="literal", patch_size=32, width=768, heads=8, depths=(33,)),
    ],
    ids=str,
)
def test_other_stems_cost_the_same(options):
    summary = summarise(published(**options))
    assert summary.macs_per_view / 1e9 == pytest.approx(58.895, rel=0.02)
    if "stem_strides" not in options:
        assert summary.params == pytest.approx(44_058_928, rel=0.01)


def random_module(make):
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, randomise(nnx.to_pure_dict(state)))


def stem(**options):
    options = {**dict(frames=8, image_size=32, mean=(0.4,) * 3, std=(0.2,) * 3), **options}
    return random_module(lambda: Stem(24, rngs=nnx.Rngs(0), **options))


@pytest.mark.parametrize(
    "options, grid",
    [
        (dict(), (4, 4, 4)),
        (dict(convolutions=1), (4, 8, 8)),
        (dict(convolutions=5), (4, 4, 4)),
        (dict(convolutions=5, strides="literal"), (2, 1, 1)),
    ],
)
def test_stems_leave_the_grid_of_table_5(options, grid):
    module = stem(**options)
    out = jax.eval_shape(module, clips(1, frames=8))
    assert module.grid == grid and out.shape == (1, grid[0], grid[1] * grid[2], 24)
    assert module.class_position().shape == (grid[0], 24)


# The whole


def test_the_model_equals_its_masked_definition():
    options = dict(dictionary=2, frames=8, depth=2, depths=(1, 1))
    (function, parameters), (masked, _) = compiled("stat", **options), compiled("stat", masked=True, **options)
    logits = function(parameters, clips(2, frames=8))
    np.testing.assert_allclose(logits, masked(parameters, clips(2, frames=8)), rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, 5) and np.abs(logits[0] - logits[1]).max() > 1e-2


def test_without_class_tokens_the_patches_of_a_frame_are_averaged():
    """Whatever stands in place of the class tokens does not change the patches."""
    options = dict(depth=2, depths=(1, 1), long_key="mean", aggregation_layers=0)
    (mean, parameters), (class_graph, class_parameters) = (
        make("stat", frame_token="mean", **options),
        make("stat", **options),
    )
    assert "class_token" not in parameters["encoder"] and "class_token" in class_parameters["encoder"]
    encoder = parameters["encoder"] | {"class_token": class_parameters["encoder"]["class_token"]}

    def of_patches(video):
        model = nnx.merge(class_graph, parameters | {"encoder": encoder}).encoder
        model.read = lambda tokens: model.norm(tokens.patches)
        return model(video)

    patches, found = quick_jit(lambda x: (of_patches(x), nnx.merge(mean, parameters).encoder(x)))(clips(2))
    np.testing.assert_allclose(found, patches.mean(2), rtol=1e-4, atol=1e-5)


def test_dropout_is_drawn_by_key():
    function, parameters = compiled("stat", dropout=0.1, drop_path=0.3)
    first, again, other = (function(parameters, clips(2), jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - compiled("stat")[0](parameters, clips(2))).max() > 1e-3


@pytest.mark.quick
def test_dropout_of_the_head_zeroes_its_input_in_training_alone():
    def encoder(video, key):
        return video

    encoder.shape = (8, 100)
    model = Classifier(encoder, width=100, num_classes=2, head_dropout=0.5, rngs=nnx.Rngs(0))
    assert nnx.eval_shape(lambda: maker("stat", head_dropout=0.5)(rngs=nnx.Rngs(0))).head_dropout == 0.5
    tokens = jnp.full((1, 8, 100), 2.0)
    dropped = model.features(tokens, jax.random.key(0))
    assert 0.3 < (dropped == 0).mean() < 0.7 and set(np.unique(dropped)) == {0.0, 4.0}
    np.testing.assert_array_equal(model.features(tokens), 2)


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, words",
    [
        (dict(window=4), "model.window=4"),
        (dict(window=0), "model.window=0"),
        (dict(frame_token="mean"), "model.frame_token=mean is a model without class tokens"),
        (dict(frame_token="max", long_key="mean"), "model.frame_token='max'"),
        (dict(pool_norm="both"), "model.pool_norm='both'"),
        (dict(head_dropout=1.0), "model.head_dropout=1.0"),
        (dict(window=-1), "model.window=-1"),
        (dict(image_size=40), "model.image_size=40 must be a multiple of"),
        (dict(image_size=36), "model.image_size=36"),
        (dict(image_size=48), "model.image_size=48 must be a multiple of"),
        (dict(frames=7), "model.frames=7"),
        (dict(frames=6, stem_convs=5, stem_strides="literal", depths=(1,)), "model.frames=6"),
        (dict(stem_convs=2), "model.stem_convs=2"),
        (dict(stem_convs=3, stem_strides="literal"), "model.stem_strides"),
        (dict(stem_convs=1, heads=1), "model.heads=1"),
        (dict(heads=3), "model.heads=3"),
        (dict(width=2), "model.width=2"),
        (dict(long_key="max"), "model.long_key"),
        (dict(kernel="cosine"), "model.kernel"),
        (dict(depth=5), "model.depth=5 must be the sum"),
        (dict(patch_size=16), "model.patch_size=16 must be 8"),
        (dict(depths=()), "model.depths"),
        (dict(depths=(1, 0, 1)), "model.depths"),
        (dict(aggregation_layers=-1), "model.aggregation_layers=-1"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(options, words):
    options = {**dict(frames=8, width=32, depths=(1, 2, 1)), **options}
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        make("stat", **{"depth": sum(options["depths"]), **options})


def test_odd_grids_that_nothing_halves_are_taken():
    assert make("stat", image_size=40, depth=2, depths=(2,))
