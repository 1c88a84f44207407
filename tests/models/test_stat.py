"""STAT: its size and cost against the paper's tables, its attention against the equations, what a query sees."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sublayers import attention
from tiny import clips, quick_jit, randomise

from vidformers import ConfigError
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.layers.tokens import Tokens
from vidformers.models.config import ModelConfig
from vidformers.models.stat import Stem, TemporalAggregation, WideningMlp, stat
from vidformers.models.summary import summarise

WIDTH, HEADS = 32, 4
CA, SA, LA = dict(window=1, long_key="none"), dict(long_key="none"), dict(window=1)  # SA, LA: beside CA (Table 1)
OWN = ("depths", "window", "long_key", "stem_convs", "stem_strides", "aggregation_layers")
TINY = dict(num_classes=5, frames=8, image_size=32, patch_size=8, width=WIDTH, heads=2, depths=(1, 2, 1))


def model(rngs, **options):
    """STAT with the fields of `Parts` and its own."""
    parts = {name: value for name, value in options.items() if name not in OWN}
    own = {name: value for name, value in options.items() if name in OWN}
    return stat(ModelConfig(**{"depth": sum(own["depths"]), **parts}), rngs=rngs, **own)


# Size and cost


@cache
def cost(**options):
    published = dict(num_classes=400, frames=16, patch_size=8, width=192, heads=2, depths=(2, 11, 2))
    return summarise(lambda rngs: model(rngs, **{**published, **options}))


@pytest.mark.parametrize("layers, params", [(0, 36_968_752), (1, 44_058_928), (2, 51_146_800), (4, 65_322_544)])
def test_aggregation_layers_make_the_size(layers, params):
    assert cost(aggregation_layers=layers).params == params


def test_what_is_read_changes_no_parameter():
    assert len({cost(**options).params for options in (CA, SA, LA, dict(), dict(long_key="mean"))}) == 1


@pytest.mark.parametrize(
    "options, gmacs",
    [
        (CA, 58.00),
        (SA, 58.74),
        (LA, 58.155),
        (dict(), 58.895),
        *[(dict(frames=32, window=w), g) for w, g in ((3, 118.09), (5, 119.57), (7, 121.05), (9, 122.53))],
        *[(dict(frames=64, window=w), g) for w, g in ((5, 240.38), (7, 243.34))],
    ],
)
def test_cost_agrees_with_tables_1_2_and_6(options, gmacs):
    assert cost(**options).macs_per_view / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize(
    "options",
    [
        dict(stem_convs=1, patch_size=4),
        dict(stem_convs=5, depths=(2, 7, 2)),
        dict(stem_convs=5, stem_strides="literal", patch_size=32, width=768, heads=8, depths=(33,)),
    ],
)
def test_other_stems_cost_the_same(options):
    assert cost(**options).macs_per_view / 1e9 == pytest.approx(58.895, rel=0.02)


# The sublayer


def options_of(**given):
    return {**dict(kv_stride=2, window=3, long_key="class", pool_queries=False), **given}


@cache
def layer(hybrid=None, dtype=jnp.float32, **options):
    """(graph, random parameters), the same ones whatever the options."""
    dictionary = dict(external=3, hybrid=hybrid) if hybrid else {}
    graph, parameters = attention(ShrinkingAttention, WIDTH, HEADS, dtype=dtype, **dictionary, **options)
    return graph, jax.tree.map(lambda p: np.asarray(p, dtype), parameters)


def draw_tokens(grid, count: int = 1, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens(rng.normal(size=(count, *grid, WIDTH)), rng.normal(size=(count, grid[0], WIDTH)))


def branch(graph, parameters, tokens):
    return nnx.merge(graph, parameters).branch(tokens)


run = quick_jit(branch, static_argnums=0)


@pytest.mark.parametrize(
    "options, grid",
    [
        (dict(), (4, 5, 7)),
        (CA, (3, 4, 4)),
        (SA, (3, 4, 4)),
        (LA, (3, 4, 4)),
        (dict(long_key="mean"), (3, 4, 4)),
        (dict(window=7, kv_stride=4, pool_queries=True), (3, 8, 8)),
        (dict(hybrid="combined"), (3, 4, 4)),
        (dict(hybrid="multi_view", kernel="relu"), (3, 4, 4)),
        (dict(kernel="relu", pool_queries=True), (4, 6, 6)),
    ],
)
def test_gathered_equals_masked_with_its_gradient(float64, options, grid):
    tokens = draw_tokens(grid, count=2)

    @quick_jit
    def both(tokens):
        def one(masked):
            graph, parameters = layer(dtype=jnp.float64, masked=masked, **options_of(**options))

            def loss(parameters, tokens):
                out = nnx.merge(graph, parameters)(tokens)
                return sum((part * jnp.cos(jnp.arange(part.size)).reshape(part.shape)).sum() for part in out), out

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(parameters, tokens)

        return one(False), one(True)

    gathered, masked = both(tokens)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), gathered, masked)
    assert gathered[0][1].patches.dtype == np.float64


def norm(x, parameters):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * parameters["scale"] + parameters["bias"]


def pool(x, parameters, stride):
    """Depthwise 3 x 3 convolution of one frame (y x d), zeros around it."""
    rows, columns = (
        range(0, size, stride) if size % stride else range(0, size - stride + 1, stride) for size in x.shape[:2]
    )
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    kernel = parameters["kernel"][:, :, 0]
    return np.array([[(x[r : r + 3, c : c + 3] * kernel).sum((0, 1)) for c in columns] for r in rows])


def average(x):
    """2 x 2 cells of (y x d) averaged, cut off at an odd end."""
    return np.array(
        [[x[r : r + 2, c : c + 2].mean((0, 1)) for c in range(0, x.shape[1], 2)] for r in range(0, x.shape[0], 2)]
    )


def definition(parameters, tokens, kv_stride, pool_queries, around, long_key):
    """Equations 1 to 8 for one clip, query by query; `around(i)` are the frames that frame i sees averaged."""

    def qkv(x):
        return np.split(norm(x, parameters["norm"]) @ parameters["qkv"]["kernel"] + parameters["qkv"]["bias"], 3, -1)

    patches, classes = qkv(tokens.patches[0]), qkv(tokens.class_tokens[0])
    frames = range(len(classes[0]))
    current, short, long = [], [], []
    for i, (name, x) in enumerate(zip("kv", patches[1:], strict=True)):
        current.append(
            [norm(pool(frame, parameters[f"pool_{name}"], kv_stride), parameters[f"norm_{name}"]) for frame in x]
        )
        short.append([average(frame) for frame in current[-1]])
        long.append({"class": classes[1 + i], "mean": x.mean((1, 2)), "none": np.zeros((0, WIDTH))}[long_key])
    outputs = []
    for i in frames:
        q = patches[0][i] if not pool_queries else pool(patches[0][i], parameters["pool_q"], 2)
        q = np.concatenate([classes[0][i][None], q.reshape(-1, WIDTH)])
        k, v = (
            np.concatenate(
                [current[s][i].reshape(-1, WIDTH), *(short[s][j].reshape(-1, WIDTH) for j in around(i)), long[s]]
            )
            for s in (0, 1)
        )
        heads = []
        for q, k, v in zip(*(np.split(x, HEADS, -1) for x in (q, k, v)), strict=True):
            weights = np.exp(q @ k.T / np.sqrt(WIDTH // HEADS))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        outputs.append(np.concatenate(heads, -1) @ parameters["out"]["kernel"] + parameters["out"]["bias"])
    return np.array(outputs)


@pytest.mark.parametrize(
    "options, grid",
    [
        (dict(), (4, 6, 6)),
        (dict(kv_stride=1, long_key="mean"), (2, 5, 3)),
        (dict(window=9), (4, 6, 6)),
        (dict(kv_stride=4, pool_queries=True, window=5), (4, 8, 8)),
        (dict(window=1, long_key="none"), (2, 4, 4)),
    ],
)
def test_attention_is_that_of_the_equations(float64, options, grid):
    options, t = options_of(**options), grid[0]
    tokens = draw_tokens(grid)
    graph, parameters = layer(dtype=jnp.float64, **options)
    reach = options.pop("window") // 2
    around = [[j for j in range(t) if j != i and abs(i - j) <= reach] for i in range(t)]
    if reach >= t:
        assert around == [[j for j in range(t) if j != i] for i in range(t)], "a wide window holds every other frame"
    patches, classes = run(graph, parameters, tokens)
    expected = definition(parameters, tokens, around=around.__getitem__, **options)
    np.testing.assert_allclose(classes[0], expected[:, 0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(patches[0].reshape(t, -1, WIDTH), expected[:, 1:], rtol=1e-9, atol=1e-11)


def covered(size, stride):
    """The rows, of `size`, that a 3-wide kernel of that stride reads."""
    return [any(abs(row - centre) <= 1 for centre in range(0, size - stride + 1, stride)) for row in range(size)]


@pytest.mark.parametrize("long_key", ["none", "class", "mean"])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("kv_stride, pool_queries", [(4, False), (2, True)])
def test_a_query_sees_exactly_its_frames(window, long_key, kv_stride, pool_queries):
    t, side = 4, 8
    graph, parameters = layer(window=window, long_key=long_key, kv_stride=kv_stride, pool_queries=pool_queries)
    mixture = np.random.default_rng(7).normal(size=WIDTH).astype(np.float32)

    def outputs(tokens):
        patches, classes = branch(graph, parameters, tokens)
        return patches[0, :, 1, 1] @ mixture, classes[0] @ mixture  # one patch of each frame, and its class token

    tokens = jax.tree.map(np.float32, draw_tokens((t, side, side)))
    seen = jax.tree.map(lambda j: np.any(j, axis=-1)[:, 0], quick_jit(jax.jacrev(outputs))(tokens))
    frames = np.arange(t)
    near = np.abs(frames[:, None] - frames) <= window // 2
    rows = np.array(covered(side, kv_stride))
    by_keys = near[:, :, None, None] & (rows[:, None] & rows)
    if long_key == "mean":
        by_keys[:] = True
    own = np.zeros((t, t, side, side), bool)
    window_of_query = slice(1, 4) if pool_queries else slice(1, 2)
    own[frames, frames, window_of_query, window_of_query] = True
    np.testing.assert_array_equal(seen[0].patches, by_keys | own)
    np.testing.assert_array_equal(seen[1].patches, by_keys)
    all_classes = np.full((t, t), long_key == "class")
    np.testing.assert_array_equal(seen[0].class_tokens, all_classes)
    np.testing.assert_array_equal(seen[1].class_tokens, all_classes | np.eye(t, dtype=bool))


def test_the_first_stage_reads_400_of_784_patches():
    assert sum(covered(28, 4)) ** 2 == 400


@pytest.mark.parametrize("side, stride, counts", [(28, 4, (49, 16, 1)), (28, 2, (196, 49, 1)), (7, 1, (49, 16, 1))])
def test_keys_have_the_published_counts(side, stride, counts):
    graph, parameters = layer(**options_of(kv_stride=stride))

    def levels(parameters, *tokens):
        module = nnx.merge(graph, parameters)
        return [level for level, _ in module.levels(*tokens, module.pool)]

    shapes = jax.eval_shape(levels, parameters, np.zeros((2, 1, 8, side, side, WIDTH)), np.zeros((2, 1, 8, WIDTH)))
    assert tuple(level.shape[3] for level in shapes) == counts
    assert counts[0] + 2 * counts[1] + 8 * counts[2] == 89 or side == 28 and stride == 2


def test_the_residual_of_pooled_queries_is_max_pooled():
    tokens = jax.tree.map(np.float32, draw_tokens((2, 4, 4)))
    graph, parameters = layer(**options_of(pool_queries=True))
    parameters = {**parameters, "out": jax.tree.map(np.zeros_like, parameters["out"])}
    patches, classes = quick_jit(lambda p, x: nnx.merge(graph, p)(x))(parameters, tokens)
    rows = [slice(max(0, 2 * i - 1), 2 * i + 2) for i in range(2)]
    expected = [[tokens.patches[:, :, r, c].max((2, 3)) for c in rows] for r in rows]
    np.testing.assert_array_equal(patches, np.moveaxis(expected, (0, 1), (2, 3)))
    np.testing.assert_array_equal(classes, tokens.class_tokens)


# Between the sublayers


def random_module(make):
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, randomise(nnx.to_pure_dict(state)))


def test_the_last_mlp_of_a_stage_doubles_the_width():
    mlp = random_module(lambda: WideningMlp(WIDTH, 48, 2 * WIDTH, rngs=nnx.Rngs(0)))
    tokens = jax.tree.map(np.float32, draw_tokens((2, 2, 2)))
    for x, found in zip(tokens, mlp(tokens), strict=True):
        x = mlp.norm(x)
        expected = mlp.skip(x) + mlp.out(jax.nn.gelu(mlp.wide(x), approximate=False))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


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
    assert module.grid == grid and out.shape == (1, *grid, 24)
    assert module.class_position().shape == (grid[0], 24)


def test_the_stem_normalises_pixels_and_adds_both_positions():
    module, video = stem(), clips(2, frames=8)
    run = quick_jit(lambda state, video: nnx.merge(nnx.graphdef(module), state)(video))
    state = nnx.state(module)
    found = run(state, video)
    normalised = ((video / 255 - 0.4) / 0.2).astype(np.float32)
    np.testing.assert_allclose(found, run(state, normalised), rtol=1e-3, atol=1e-3)
    without = run(
        {
            **state,
            "space": jax.tree.map(jnp.zeros_like, state["space"]),
            "time": jax.tree.map(jnp.zeros_like, state["time"]),
        },
        video,
    )
    expected = module.space[1:].reshape(4, 4, 24) + module.time[:, None, None]
    np.testing.assert_allclose(found - without, np.broadcast_to(expected, found.shape), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(module.class_position(), module.space[0] + module.time[...], rtol=1e-6)


def test_aggregation_reads_every_frame_of_its_own_clip():
    module = random_module(lambda: TemporalAggregation(WIDTH, HEADS, 1, rngs=nnx.Rngs(0)))
    classes = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
    jacobian = quick_jit(jax.jacrev(lambda x: module(x)[:, :2]))(classes)
    seen = np.abs(jacobian).max(axis=(1, 4)) > 1e-6  # (b, b, t)
    np.testing.assert_array_equal(seen, np.broadcast_to(np.eye(2, dtype=bool)[:, :, None], (2, 2, 3)))


# The whole


@cache
def tiny(**options):
    """(f(parameters, video, key=None) -> logits, random parameters)."""
    graph, state = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0), **{**TINY, **options})))
    return lambda p, video, key=None: nnx.merge(graph, p)(video, key), randomise(nnx.to_pure_dict(state))


def test_the_model_equals_its_masked_definition_and_trains_every_parameter():
    video = clips(2, frames=8)
    options = dict(dictionary=2, depths=(1, 2))  # nothing reads the patches of the last block
    function, parameters = tiny(**options)

    def loss(function, parameters):
        logits = function(parameters, video)
        return (logits * np.arange(1, 6)).sum(), logits

    gradient, logits = quick_jit(jax.grad(partial(loss, function), has_aux=True))(parameters)
    masked = quick_jit(tiny(masked=True, **options)[0])(parameters, video)
    np.testing.assert_allclose(logits, masked, rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, 5) and np.abs(logits[0] - logits[1]).max() > 1e-2
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


def test_order_counts_and_noise_is_drawn_by_key():
    video = clips(2, frames=8)
    function, parameters = tiny(drop_path=0.3, dropout=0.1)
    function = quick_jit(function)
    logits = function(parameters, video)
    assert np.abs(logits - function(parameters, video[:, ::-1])).max() > 1e-2
    first, again, other = (function(parameters, video, jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - logits).max() > 1e-3


def test_without_aggregation_the_class_tokens_are_averaged():
    shape = nnx.eval_shape(lambda: model(nnx.Rngs(0), **TINY, aggregation_layers=0))
    classes = np.random.default_rng(0).normal(size=(2, 4, 128)).astype(np.float32)
    np.testing.assert_allclose(shape.readout(classes), classes.mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(window=4), "model.window=4"),
        (dict(window=0), "model.window=0"),
        (dict(window=-1), "model.window=-1"),
        (dict(image_size=40), "model.image_size=40 gives a grid of side 5"),
        (dict(image_size=36), "model.image_size=36"),
        (dict(image_size=48), "cannot halve 2 times"),
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
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        nnx.eval_shape(lambda: model(nnx.Rngs(0), **{**TINY, **options}))


def test_odd_grids_that_nothing_halves_are_taken():
    nnx.eval_shape(lambda: model(nnx.Rngs(0), **{**TINY, "image_size": 40, "depths": (2,)}))
