"""The picture of a batch contains the pixels that the model receives, with their labels."""

import os

import cv2
import numpy as np
import pytest
from command import ROOT, one_sentence
from numbered import write

from input_pipeline import show
from input_pipeline.outputs import output_file
from input_pipeline.pipeline import Pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for number in range(4):
        write(root / f"{number}.mp4", count=12)
    (root / "broken.mp4").touch()
    (root / "train.csv").write_text("".join(f"{number}.mp4,{number % 2}\n" for number in range(4)) + "broken.mp4,1\n")
    (root / "val.csv").write_text("2.mp4,0\n3.mp4,1\n")
    (root / "classes.txt").write_text("$left$\nrechts für immer\n")
    return root


def command(data, out, *more):
    return [
        f"--config={ROOT}/configs/demo.py:vit",
        "--config.data.source=csv",
        f"--config.data.root={data}",
        "--config.data.num_classes=2",
        "--config.data.flip_swaps=()",
        "--config.data.frames=4",
        f"--out={out}",
        *more,
    ]


def pipeline(data):
    return Pipeline(
        root=str(data),
        train="train.csv",
        val="val.csv",
        classes="classes.txt",
        num_classes=2,
        frames=4,
        size=32,
        short_side=(34, 40),
        test_short_side=36,
        workers=0,
    )


def holds(picture, clip):
    """Returns whether the frames of a clip are in the picture, pixel by pixel, beside each other."""
    strip = np.full((32, 36 * len(clip), 3), 255, np.uint8)
    for t, frame in enumerate(clip):
        strip[:, 36 * t : 36 * t + 32] = frame
    frames = picture[:, -strip.shape[1] :]
    return any(np.array_equal(frames[top : top + 32], strip) for top in range(len(frames) - 31))


def test_a_training_batch(data, tmp_path, capsys):
    out = tmp_path / "batch.png"
    assert show.main(command(data, out, "--rows=5", "--config.seed=3")) == 0
    assert "5 clips of 4 frames" in capsys.readouterr().out
    picture = cv2.imread(str(out))[..., ::-1].copy()
    labels, clips, indices = show.train_rows(pipeline(data), 5, seed=3)
    assert (clips.shape, indices.shape) == ((5, 4, 32, 32, 3), (5, 4))
    np.testing.assert_array_equal(show.draw(labels, clips, indices), picture)
    for clip in clips:
        assert holds(picture, clip)
    texts = {text.split("\n")[1]: text for text in labels}
    assert texts.keys() == {"0.mp4", "1.mp4", "2.mp4", "3.mp4", "broken.mp4"}
    assert texts["1.mp4"] == "rechts für immer\n1.mp4" and texts["2.mp4"] == "$left$\n2.mp4"
    assert "Invalid data" in texts["broken.mp4"]
    assert os.listdir(tmp_path) == ["batch.png"]


def test_the_views_of_a_test_video(data, tmp_path):
    out = tmp_path / "views.png"
    flags = ("--split=val", "--video=1", "--config.eval.clips=2", "--config.eval.crops=3")
    assert show.main(command(data, out, *flags)) == 0
    picture = cv2.imread(str(out))[..., ::-1].copy()
    made = pipeline(data)
    labels, clips, indices = show.val_rows(made, made.val_manifest.records[1], clips=2, crops=3)
    assert labels[4] == "rechts für immer\n3.mp4\nclip 2 of 2, crop 2 of 3"
    assert len(clips) == 6 and all(holds(picture, clip) for clip in clips)
    assert (indices[0] == indices[2]).all() and (indices[0] != indices[3]).all()


@pytest.mark.quick
def test_many_frames_fit_one_picture():
    picture = show.draw(["long"], np.zeros((1, 250, 224, 224, 3), np.uint8), np.zeros((1, 250), int))
    assert picture.shape[1] < 3500 and (picture == 0).all(-1).any()


@pytest.mark.quick
def test_any_text_is_drawn():
    text = "$x_{\n" + os.fsdecode(b"\xff") + "漢" * 100
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    picture = show.draw([text], clip, np.zeros((1, 2), int))
    assert holds(picture, clip[0])
    assert (picture[:, : -2 * 36] < 128).any()  # letters


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--out="], "--out= has no value"),
        (["--split=all"], "--split=all must be train, val or test."),
        (["--rows=0"], "--rows=0 must be a whole number of at least 1."),
        (["--split=val", "--video=2"], "--video=2 must be below 2"),
        (["--out=/nowhere/batch.png"], "/nowhere/batch.png"),
        (["--config.data.train=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_are_one_sentence(data, tmp_path, flags, sentence, capsys):
    assert show.main(command(data, tmp_path / "batch.png", *flags)) == 2
    assert sentence in one_sentence(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_another_command_writes_is_left_to_it(data, tmp_path, capsys):
    with output_file(tmp_path / "batch.png"):
        assert show.main(command(data, tmp_path / "batch.png")) == 2
    assert "batch.png is being written by another command" in one_sentence(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
