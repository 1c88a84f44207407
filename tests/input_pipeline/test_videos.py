"""A record opens as the same video from a file, a folder or a shard, and a clip is cut out of a longer file."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numbered import picture, read_number, write

from input_pipeline import videos
from input_pipeline.annotations import Record
from input_pipeline.decode import Video
from input_pipeline.errors import DecodeError
from input_pipeline.videos import CompressedFrames, FrameFolder, open_video


def record(path, **kwargs):
    return Record(0, str(path), 0, 1, **kwargs)


def numbers(video, indices=None):
    return [read_number(frame) for frame in video.frames(range(len(video.times)) if indices is None else indices)]


def write_frames(folder, pattern, first=0, count=12):
    """Writes pictures numbered from 0, under file names that count from `first`."""
    os.makedirs(folder)
    for number in range(count):
        path = f"{folder}/{pattern.format(first + number)}"
        encoded, data = cv2.imencode(".jpg", picture(number))
        assert encoded
        with open(path, "wb") as file:
            file.write(data)
    return str(folder)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "{:06d}.jpg", "{}.JPG", "frame{}.jpeg", "v_7_{:02d}.jpg"])
def test_numbering_of_frames(tmp_path, pattern, first):
    video = open_video(record(write_frames(tmp_path / "v 7", pattern, first)))
    assert numbers(video) == list(range(12))
    assert numbers(video, [11, 0, 3, 0]) == [11, 0, 3, 0]
    frames = video.frames([5])
    assert frames.dtype == np.uint8 and frames.shape == (1, *picture(0).shape)


@pytest.mark.quick
def test_colours_of_frames(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 250  # OpenCV writes blue, green, red
    cv2.imwrite(str(tmp_path / "0.jpg"), red)
    np.testing.assert_allclose(FrameFolder(str(tmp_path)).frames([0])[0, 8, 8], [250, 0, 0], atol=4)


def test_times_of_frames(tmp_path):
    path = write_frames(tmp_path / "v", "{:05d}.jpg", count=3)
    assert open_video(record(path)).duration == pytest.approx(0.1)
    video = open_video(record(path), frame_rate=12)
    np.testing.assert_allclose(video.times, np.arange(3) / 12)
    assert video.duration == pytest.approx(0.25)


def test_other_files_beside_the_frames(tmp_path):
    path = write_frames(tmp_path / "v", "{:05d}.jpg", 1)
    for name in ("n_frames.txt", "00013.png", "cover.jpg", ".DS_Store"):
        (tmp_path / "v" / name).write_text("13")
    assert len(FrameFolder(path).times) == 12


@pytest.mark.parametrize(
    "pattern, first, change, missing",
    [
        ("img_{:05d}.jpg", 1, lambda v: os.remove(f"{v}/img_00007.jpg"), "img_00007.jpg is missing"),
        ("{}.jpg", 0, lambda v: os.remove(f"{v}/10.jpg"), "the frame 10.jpg is missing"),
        ("{:03d}.jpg", 2, lambda v: None, "001.jpg is missing"),
        ("{:03d}.jpg", 0, lambda v: os.link(f"{v}/003.jpg", f"{v}/3.jpg"), "under two names"),
        ("img_{:03d}.jpg", 0, lambda v: os.link(f"{v}/img_003.jpg", f"{v}/flow_x_003.jpg"), r"flow_x_\* and img_\*"),
        ("picture.jpg", 0, lambda v: None, "no numbered JPEG frames"),
    ],
)
def test_gaps_in_the_numbering(tmp_path, pattern, first, change, missing):
    path = write_frames(tmp_path / "video 7", pattern, first)
    change(path)
    with pytest.raises(DecodeError, match=f"video 7.*{missing}"):
        open_video(record(path))


def with_thumbnail(data):
    """Returns a JPEG file with another embedded before the picture, as cameras write it."""
    return data[:2] + b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data + data[2:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"text",
        lambda data: data[:-2],
        lambda data: data[: len(data) * 3 // 4],
        lambda data: with_thumbnail(data)[: -len(data) // 4],
        None,
    ],
    ids=["empty", "text", "no end", "truncated", "truncated with a thumbnail", "missing"],
)
def test_broken_frames(tmp_path, damage):
    path = write_frames(tmp_path / "v", "{:03d}.jpg", count=3)
    video, name = FrameFolder(path), f"{path}/001.jpg"
    with open(name, "rb") as file:
        data = file.read()
    os.remove(name)
    if damage:
        with open(name, "wb") as file:
            file.write(damage(data))
    with pytest.raises(DecodeError, match="v/001.jpg"):
        video.frames([0, 1, 2])
    assert numbers(video, [0, 2]) == [0, 2]


def test_frames_with_thumbnails(tmp_path):
    path = write_frames(tmp_path / "v", "{:03d}.jpg", count=1)
    with open(f"{path}/000.jpg", "rb+") as file:
        data = with_thumbnail(file.read())
        file.seek(0)
        file.write(data)
    assert numbers(FrameFolder(path)) == [0]


def test_indices_out_of_range(tmp_path):
    cut = open_video(record(write_frames(tmp_path / "v", "{:03d}.jpg", count=60), start=0.5, end=0.9))
    for video in (cut, FrameFolder(str(tmp_path / "v"))):
        for indices in ([len(video.times)], [-1], []):
            with pytest.raises(IndexError):
                video.frames(indices)


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """100 frames at 25 a second."""
    return write(tmp_path_factory.mktemp("movies") / "movie.mp4", count=100, gop=12)


@pytest.mark.parametrize("kind", ["file", "cut of a file", "folder", "in memory"])
def test_frames_one_at_a_time(movie, tmp_path, kind):
    folder = write_frames(tmp_path / "v", "{:03d}.jpg", count=20)
    video = {
        "file": lambda: Video(movie),
        "folder": lambda: FrameFolder(folder),
        "cut of a file": lambda: open_video(record(movie, start=1.0, end=2.0)),
        "in memory": lambda: CompressedFrames(
            [cv2.imencode(".png", picture(i))[1].tobytes() for i in range(20)], 30.0, "clip"
        ),
    }[kind]()
    wanted = [0, 0, 3, 4, 4, 4, 17]
    frames = list(video.each(wanted))
    np.testing.assert_array_equal(frames, video.frames(wanted))
    with pytest.raises(IndexError):
        list(video.each([len(video.times)]))


def test_a_file_without_start_and_end_opens_as_it_is(movie):
    video, expected = open_video(record(movie)), Video(movie)
    np.testing.assert_array_equal(video.times, expected.times)
    assert video.duration == expected.duration and numbers(video, [99, 0]) == [99, 0]


@pytest.mark.parametrize(
    "start, end, first, last",
    [
        (1.0, 2.0, 25, 49),
        (0.0, 2.5, 0, 62),
        (1.01, 1.99, 25, 49),  # the frames on screen at the start and just before the end
        (3.0, 5.0, 75, 99),  # the file ends first
        (3.99, 6.0, 99, 99),
    ],
)
def test_clip_of_a_longer_file(movie, start, end, first, last):
    video = open_video(record(movie, start=start, end=end, may_be_cut=True))
    assert numbers(video) == list(range(first, last + 1))
    np.testing.assert_allclose(video.times, np.arange(last + 1 - first) / 25, atol=1e-3)
    assert video.duration == pytest.approx((last + 1 - first) / 25, abs=2e-3)
    assert numbers(video, [last - first, 0, 0]) == [last, first, first]


def test_a_file_that_was_cut_already_is_taken_whole(movie):
    """Its times start at 0, and cuts at keyframes leave up to a second too much."""
    video = open_video(record(movie, start=112.0, end=115.1, may_be_cut=True))
    assert len(video.times) == 100
    assert len(open_video(record(movie, start=112.0, end=122.0, may_be_cut=True)).times) == 100


def test_a_file_that_ends_before_its_clip(movie):
    with pytest.raises(DecodeError, match=r"movie.mp4: lasts 4 s, but its clip starts at 12 s"):
        open_video(record(movie, start=12.0, end=14.0, may_be_cut=True))


def test_clip_of_a_folder_of_frames(tmp_path):
    path = write_frames(tmp_path / "v", "{:03d}.jpg", count=36)
    video = open_video(record(path, start=1.0, end=2.0), frame_rate=12)
    assert numbers(video) == list(range(12, 24)) and video.duration == pytest.approx(1.0)


def test_row_of_a_shard(movie, monkeypatch):
    content = {("shard-0", 3): Path(movie).read_bytes()}
    monkeypatch.setattr(videos, "read_video", lambda path, position, sha256: content[path, position])
    assert numbers(open_video(record("shard-0", position=3)), [7]) == [7]


@pytest.mark.parametrize("name", ["with space, comma's & #1", "ünï code 動画", "sub/../sub/./deep", "50%05d"])
def test_paths(movie, tmp_path, monkeypatch, name):
    os.makedirs(tmp_path / name)
    os.makedirs(tmp_path / "elsewhere")
    os.link(movie, tmp_path / name / "a b:c.mp4")
    write_frames(tmp_path / name / "frames 動", "{:03d}.jpg", count=2)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (f"../{name}/a b:c.mp4", tmp_path / name / "a b:c.mp4"):
        assert numbers(open_video(record(path)), [42]) == [42]
    assert numbers(open_video(record(f"../{name}/frames 動/"))) == [0, 1]


@pytest.mark.quick
def test_an_absent_file(tmp_path):
    with pytest.raises(DecodeError, match="absent.mp4"):
        open_video(record(tmp_path / "absent.mp4"))
