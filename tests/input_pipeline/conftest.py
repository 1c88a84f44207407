"""Folders of videos that several files of tests read."""

import os
import shutil

import cv2
import pytest
from clips import pipeline, take, write_clips
from numbered import picture, write
from trees import CODECS, FRAME_FOLDER, FRAMES


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """The folder of `clips.write_clips`."""
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def reference(clip_folder):
    """Twelve training batches, made in one process without workers."""
    return take(pipeline(clip_folder).train_batches(batch_size=4, seed=5), 12)


@pytest.fixture(scope="session")
def clip_of(tmp_path_factory):
    """Extension -> path of a clip of numbered frames."""
    root = tmp_path_factory.mktemp("formats")
    clips = {extension: write(root / f"clip{extension}", codec, FRAMES) for extension, codec in CODECS.items()}
    os.mkdir(root / "frames")
    for number in range(FRAMES):
        cv2.imwrite(str(root / "frames" / f"img_{number + 1:05d}.jpg"), picture(number))
    return {**clips, FRAME_FOLDER: str(root / "frames")}


@pytest.fixture
def tree(tmp_path, clip_of):
    """Makes the root of a data set: `texts` are its lists by name, `videos` the names of its videos."""

    def make(texts, videos=()):
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        for name in videos:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            extension = os.path.splitext(name)[1]
            if extension == FRAME_FOLDER:
                shutil.copytree(clip_of[extension], tmp_path / name)
            else:
                shutil.copy(clip_of.get(extension, clip_of[".mp4"]), tmp_path / name)
        return str(tmp_path)

    return make
