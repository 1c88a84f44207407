"""The keys that `--keys` draws, against expected keys, against the masks of the masked forms, and as pixels."""

import cv2
import jax
import numpy as np
import pytest
from command import ROOT, one_sentence
from flax import nnx
from schemes import EXAMPLES, SCHEMES, Near, required_options
from sublayers import HEADS, WIDTH, attention, draw_tokens, layer, module
from tiny import maker, quick_jit

import main
from vidformers import MODELS, ConfigError
from vidformers.attention import kernels
from vidformers.attention.class_attention import ClassAttention
from vidformers.attention.convolutional import ConvolutionalAttention
from vidformers.attention.frame import Frame
from vidformers.attention.joint import Joint
from vidformers.attention.longformer import FrameSequence, LongformerAttention
from vidformers.attention.registry import NOT_PARTITIONS
from vidformers.attention.shifted import Shifted
from vidformers.attention.shifted_window import ShiftedWindowAttention
from vidformers.attention.shrinking import ShrinkingAttention
from vidformers.inference.explain.key_pictures import draw_keys
from vidformers.inference.explain.keys import Layout, model_keys, visible_keys

pytestmark = pytest.mark.quick
ENTRIES = {entry.name: entry for entry in [*SCHEMES.values(), *EXAMPLES]}


def merged(form):
    return nnx.merge(*form)


def places(shares) -> set[tuple[int, ...]]:
    """Returns the places of an array that are not 0."""
    return {tuple(map(int, place)) for place in np.argwhere(shares)}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_query_of_a_registered_scheme_has_its_expected_keys(name):
    entry = ENTRIES[name]
    scheme, grid = entry.make(), entry.grid
    sublayer = merged(layer(scheme, **required_options(scheme)))
    for kind in entry.class_tokens:
        count = {"none": 0, "clip": 1, "frame": grid[0]}[kind]
        for query in np.ndindex(grid) if kind == entry.class_tokens[-1] else [(0, 0, 0), (1, 1, 0)]:
            keys = visible_keys(sublayer, Layout(grid, count), query)
            expected = set(entry.expected_keys(grid, *query))
            assert places(keys.levels["patches"].shares) == expected
            # The class token of a frame is read where the patches of the frame are.
            frames = {key[0] for key in expected} if kind == "frame" else set(range(count))
            assert places(keys.class_tokens) == {(frame,) for frame in frames}


def test_shifts_are_shares_of_the_heads():
    def shares(class_tokens=4, **options):
        scheme = Shifted(**dict(direction="heads", moved="V", before=1, after=1) | options)
        keys = visible_keys(merged(layer(scheme)), Layout((4, 2, 2), class_tokens), (1, 0, 1))
        return keys.levels["patches"].shares.reshape(4, 4), keys.class_tokens

    # The keys of all heads stay, and one head of four takes its values from the frame before, one from that after.
    assert [list(frame) for frame in shares()[0]] == [[1 / 4] * 4, [1] * 4, [1 / 4] * 4, [0] * 4]
    assert list(shares(moved="KV", before=2)[0][:, 0]) == [2 / 4, 1 / 4, 1 / 4, 0]
    assert list(shares(moved="Q")[0][:, 0]) == [0, 1, 0, 0]
    # Token 0 is the class token, so that with before=2 it and the first patch come from the frame before.
    patches, class_tokens = shares(direction="patches", moved="KV", before=2, after=1)
    assert [list(frame) for frame in patches] == [[1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0] * 4]
    assert list(class_tokens) == [1, 0, 0, 0]


def masks(form, tokens):
    """Returns the masks (q k) of all calls of the kernel in the masked form, None where nothing is hidden."""
    graph, parameters = form
    shapes = []

    def run(parameters, tokens):
        sublayer, found = nnx.merge(graph, parameters), []

        def kernel(q, key_values):
            found.append(key_values[0].mask)
            shapes.append((q.shape[-3], key_values[0].k.shape[-3]))
            return kernels.softmax(q, key_values)

        sublayer.kernel = kernel
        sublayer(tokens)
        return found

    found = quick_jit(run)(parameters, tokens)
    return [np.ones(s, bool) if m is None else np.reshape(m, s) for m, s in zip(found, shapes, strict=True)]


def shrinking(grid, **options):
    """Rows are the class token and the patches of each frame, columns the keys of each level."""
    form = attention(ShrinkingAttention, WIDTH, HEADS, masked=True, **options)
    (mask,), (t, y, x), half = masks(form, draw_tokens(grid, grid[0])), grid, 2 if options.get("pool_queries") else 1
    rows = mask.reshape(t, 1 + -(-y // half) * -(-x // half), -1)[:, 1:].reshape(t, -(-y // half), -(-x // half), -1)

    def expected(keys):
        slots = [] if options.get("long_key") == "none" else [keys.class_tokens]
        return np.concatenate([*(level.shares.ravel() for level in keys.levels.values()), *slots])

    return form, Layout(grid, grid[0]), lambda query: rows[query[0], query[1] // half, query[2] // half], expected


def windows(grid, window, shifted):
    """Rows and columns are patches of the grid that is padded to whole windows."""
    form = attention(ShiftedWindowAttention, WIDTH, HEADS, masked=True, window=window, shifted=shifted)
    (mask,), sizes = masks(form, draw_tokens(grid, 0)), map(min, grid, window)
    padded = [-(-n // size) * size for n, size in zip(grid, sizes, strict=True)]
    t, y, x = grid
    rows = mask.reshape(*padded, *padded)[..., :t, :y, :x]
    return form, Layout(grid, 0), lambda query: rows[query].ravel(), lambda keys: keys.levels["patches"].shares.ravel()


def convolved(scheme, grid, count):
    """Rows and columns are groups, each with its patches and its class token."""
    form = attention(ConvolutionalAttention, scheme, WIDTH, HEADS, masked=True)
    (mask,), groups = masks(form, draw_tokens(grid, count)), grid[0] if isinstance(scheme, Frame) else 1
    rows = mask.reshape(groups, -1, mask.shape[1])[:, : int(np.prod(grid)) // groups].reshape(*grid, -1)

    def expected(keys):
        shares = keys.levels["convolved patches"].shares.reshape(groups, -1)
        return np.concatenate([shares, keys.class_tokens.reshape(groups, -1)], axis=1).ravel()

    return form, Layout(grid, count), lambda query: rows[query], expected


def longformer(window, frames):
    """Rows are frames, columns the class token and the frames."""
    form = attention(LongformerAttention, WIDTH, HEADS, window, masked=True)
    tokens = np.random.default_rng(0).normal(size=(1, 1 + frames, WIDTH))
    mask = masks(form, FrameSequence(tokens, np.ones((1, 1 + frames), bool)))[0]

    def expected(keys):
        return np.concatenate([keys.class_tokens, keys.levels["frames"].shares.ravel()])

    return form, Layout((frames, 1, 1), 1), lambda query: mask[query[0]], expected


def of_class(grid):
    form = module(lambda: ClassAttention(WIDTH, HEADS, rngs=nnx.Rngs(0)))
    (mask,) = masks(form, draw_tokens(grid, 1))
    return form, Layout(grid, 1), lambda query: mask[0], lambda keys: keys.levels["patches"].shares.ravel()


CASES = {
    "ShrinkingAttention": lambda: shrinking((4, 5, 7), kv_stride=2, window=3),
    "ShrinkingAttention pooled": lambda: shrinking((5, 4, 6), window=5, long_key="mean", pool_queries=True),
    "ShrinkingAttention current": lambda: shrinking((3, 4, 4), window=1, long_key="none"),
    "ShiftedWindowAttention": lambda: windows((4, 6, 5), (2, 3, 3), shifted=True),
    "ShiftedWindowAttention whole": lambda: windows((2, 6, 6), (4, 3, 3), shifted=False),
    "ConvolutionalAttention frame": lambda: convolved(Frame(), (3, 3, 4), 3),
    "ConvolutionalAttention": lambda: convolved(Joint(), (3, 3, 4), 1),
    "LongformerAttention": lambda: longformer(4, 9),
    "ClassAttention": lambda: of_class((2, 3, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_query_of_another_attention_has_the_keys_of_its_mask(name):
    form, layout, row, expected = CASES[name]()
    for query in np.ndindex(layout.grid):
        keys = visible_keys(merged(form), layout, query)
        np.testing.assert_array_equal(expected(keys), row(query))
        assert sum(keys.counts.values()) == row(query).sum()


def test_every_attention_that_is_not_a_partition_is_compared_with_its_mask():
    assert {name.split()[0] for name in CASES} == set(NOT_PARTITIONS)
    with pytest.raises(ConfigError, match="--keys does not support the attention Unknown. Register it with"):
        visible_keys(type("Unknown", (), {})(), Layout((2, 2, 2), 0), (0, 0, 0))


@pytest.mark.parametrize("name", [*MODELS, "vtn:resnet", "mean"])
def test_every_model_has_keys(name):
    mean = dict(frame_token="mean", long_key="mean", aggregation_layers=0)
    rows = model_keys(maker("stat", **mean) if name == "mean" else maker(name))
    assert all(place.startswith("Block") and keys.counts for place, keys in rows)
    if name in ("vtn", "swin", "stat"):
        assert draw_keys(rows).startswith(b"\x89PNG")
    if name == "mevit":
        assert [(place, keys.attention) for place, keys in rows] == [
            ("Blocks 1-2", "Motion(size=2)"),
            ("Blocks 1-2", "Frame()"),
            ("Block 3", "ClassAttention of the class token"),
        ]


@pytest.mark.quick
def test_the_entries_of_a_dictionary_are_keys_also_where_all_layers_share_it():
    for per in ("layer", "model"):
        rows = model_keys(maker("havit", dictionary_per=per))
        assert [keys.entries for _, keys in rows] == [3, 3, 0], "time, space and class attention"


def picture(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_the_picture_has_the_colours_of_the_keys():
    keys = visible_keys(merged(layer(Near())), Layout((4, 6, 6), 1), (1, 2, 4))  # 3 x 3 patches of the frames 0 to 2
    image = picture(draw_keys([("Block 1", keys)])).astype(int)
    orange, blue = (np.abs(image - colour).max(axis=-1) < 8 for colour in ((242, 133, 28), (31, 90, 200)))
    # A frame is 150 pixels wide, and a cell 25 with a white line at its end. The query covers 15 x 15 of a key.
    assert orange[:-40].sum() == 3 * 9 * 24**2 - blue[:-40].sum() + 11**2
    rows, columns = np.nonzero(blue[:-40])
    assert len(rows) == 14**2 and np.ptp(rows) == np.ptp(columns) == 13
    left = np.nonzero(orange[rows[0]])[0].min()  # of the first key of the first frame, in column 3
    assert columns.min() == left + (150 + 6) + 25 + 5


def test_the_command_writes_the_picture_and_names_a_wrong_query(tmp_path, capsys):
    command = ["main.py", f"--config={ROOT}/configs/demo.py:mevit", "--mode=summary", f"--keys={tmp_path}/keys.png"]
    assert main.main([*command, "--query=1,2,3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("{")
    assert picture((tmp_path / "keys.png").read_bytes()).std() > 20
    for flags, words in (
        (["--query=8,0,0"], "--query=8,0,0 is not a patch of the model"),
        (["--query=1,2"], "--query=1,2 is not"),
        (["--query=a,b,c"], "--query=a,b,c must be three numbers"),
    ):
        assert main.main([*command, *flags]) == 2
        assert words in one_sentence(capsys.readouterr().err)
    assert main.main([*command[:-1], "--query=1,2,3"]) == 2
    assert "--query needs --keys" in one_sentence(capsys.readouterr().err)
    assert jax.devices()  # the summary has run in this process
