"""Broken files and unusual names: decoding gives the right frame or a DecodeError that names the file, in time."""

import contextlib
import io
import itertools
import os
import signal
import subprocess
import sys
import types
import warnings

import av
import numpy as np
import pytest
from numbered import HEIGHT, WIDTH, read_number, silence, write

from input_pipeline import containers, decode, watchdog
from input_pipeline.decode import Video
from input_pipeline.errors import DecodeError

PREPARED = {"bf": "0", "tune": "fastdecode", "x264-params": "keyint=4:min-keyint=4:scenecut=0:open-gop=0"}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    level = av.logging.get_level()
    av.logging.set_level(None)
    yield
    av.logging.set_level(level)


def read(path):
    with open(path, "rb") as file:
        return bytearray(file.read())


def audio_only(path):
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        container.mux(sound.encode(silence(1024)))
        container.mux(sound.encode())


def truncated(path, **kwargs):
    data = read(write(path, **kwargs))
    path.write_bytes(data[: len(data) * 6 // 10])


@pytest.mark.parametrize(
    "break_file",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a video\n" * 100),
        lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"),
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        lambda path: truncated(path),  # without its index, at the end
        lambda path: truncated(path, container_options={"movflags": "faststart"}),  # with it, at the start
        audio_only,
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("/dev/zero"),
    ],
    ids=[
        "empty",
        "text",
        "list",
        "noise",
        "no_moov",
        "truncated",
        "audio_only",
        "missing",
        "directory",
        "pipe",
        "symlink_loop",
        "device",
    ],
)
def test_broken_files_are_decode_errors(tmp_path, break_file):
    path = tmp_path / "broken.mp4"
    break_file(path)
    with pytest.raises(DecodeError, match="broken.mp4") as caught:
        video = Video(str(path))
        video.frames(range(len(video.times)))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.quick
def test_text_is_not_a_video(tmp_path):
    (tmp_path / "notes.txt").write_text("a screen of letters\n" * 100)
    with pytest.raises(DecodeError, match="no video"):
        Video(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    "name",
    ["with space.mp4", "größe 漢字.mp4", "a:b.mp4", "100%d.mp4", "-x.mp4", "q?a#b&c.mp4", os.fsdecode(b"\xff\xfe.mp4")],
    ids=ascii,
)
def test_unusual_file_names(tmp_path, name, monkeypatch):
    write(tmp_path / "video.mp4", count=3)
    os.rename(tmp_path / "video.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, os.path.join(tmp_path, name)):
        assert read_number(Video(path).frames([2])[0]) == 2
    os.truncate(tmp_path / name, 100)
    with pytest.raises(DecodeError) as caught:
        Video(name)
    assert str(caught.value).startswith(name)


@pytest.mark.quick
def test_metadata_in_another_encoding(tmp_path):
    path = write(tmp_path / "video.mp4", count=3, metadata={"title": "title of it"})
    data = read(path)
    start = data.index(b"title of it")
    data[start : start + 5] = b"\xff\xfe\xe9\x80\xc3"
    (tmp_path / "video.mp4").write_bytes(data)
    for source in (path, bytes(data)):
        assert read_number(Video(source).frames([2])[0]) == 2


def test_a_file_that_is_deleted_while_it_is_open(tmp_path):
    path = write(tmp_path / "video.mp4", count=3)
    video = Video(path)
    os.remove(path)
    assert read_number(video.frames([2])[0]) == 2  # the file is still open
    with pytest.raises(DecodeError, match="video.mp4: No such file"):
        video.frames([2])


def test_files_are_closed(tmp_path):
    path = write(tmp_path / "video.mp4", count=3)
    audio_only(tmp_path / "sound.mp4")

    def opened():
        return [
            name
            for name in map(os.path.realpath, (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")))
            if name.startswith(str(tmp_path))
        ]

    with warnings.catch_warnings(action="error"):
        Video(path)
        video = Video(path)
        video.frames([0])
        video.frames([1])
        with pytest.raises(DecodeError):
            Video(str(tmp_path / "sound.mp4"))
        assert opened() == []


def moving(path, count=48, codec="libx264", gop=12, pix_fmt="yuv420p", **options):
    """Writes a detailed moving picture, so that flipped bits change pixels. Returns the content of the file."""
    if codec == "libx264":  # without this option, x264 sometimes writes other bytes, see transcode.py
        options["x264-params"] = f"cpu-independent=1:{options.get('x264-params', '')}".rstrip(":")
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (60, 80, 3), np.uint8), np.ones((3, 3, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = HEIGHT, WIDTH, pix_fmt, gop
        for i in range(count):
            image = np.ascontiguousarray(texture[i : i + HEIGHT, 2 * i : 2 * i + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return bytes(read(path))


# Containers whose index shows what is missing, and decoders that flag what they conceal.
@pytest.mark.parametrize(
    "name, codec",
    [
        ("video.mp4", "libx264"),
        ("video.mkv", "libx264"),
        ("video.mp4", "mpeg4"),
        ("video.avi", "mpeg4"),
        ("video.mpg", "mpeg2video"),
    ],
)
@pytest.mark.parametrize("position", [0.4, 0.6])
def test_a_hole_in_the_middle(tmp_path, name, codec, position):
    path = tmp_path / name
    data = bytearray(
        moving(path, codec=codec, bf="0")
    )  # a B-frame could be shown before the damaged frame to which it refers
    clean = Video(str(path))
    expected = clean.frames(range(48))
    start, length = int(len(data) * position), len(data) // 20
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    refused = 0
    try:
        video = Video(str(path))
    except DecodeError:
        return
    for index, time in enumerate(video.times):
        try:
            frame = video.frames([index])[0]
        except DecodeError:
            refused += 1
        else:
            np.testing.assert_array_equal(frame, expected[round(25 * time)])
    assert 0 < refused + 48 - len(video.times) <= 24  # groups of pictures without a hole are intact


@pytest.mark.parametrize(
    "name, codec",
    [("video.ts", "libx264"), ("video.webm", "libvpx-vp9"), ("hevc.mp4", "libx265"), ("av1.mp4", "libsvtav1")],
)
def test_a_hole_in_a_file_with_less_redundancy(tmp_path, name, codec):
    path = tmp_path / name
    data = bytearray(moving(path, codec=codec))
    expected = Video(str(path)).frames([0])
    start = len(data) // 2
    data[start : start + len(data) // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    try:
        video = Video(str(path))
        np.testing.assert_array_equal(video.frames([0]), expected)
        video.frames(range(len(video.times)))
    except DecodeError as error:
        assert name in str(error)


def flipped(data, seed):
    """Returns a copy with three flipped bits."""
    damaged = bytearray(data)
    for bit in np.random.default_rng(seed).integers(8 * len(data), size=3):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_frames_that_ffmpeg_flags_are_refused(tmp_path):
    """Flagged frames and later frames of their group are refused, in 200 files with three flipped bits each."""
    data = moving(tmp_path / "video.mp4", gop=250, bf="0")
    seen = seen_last = 0
    for seed in range(200):
        damaged = flipped(data, seed)
        try:
            with av.open(io.BytesIO(damaged), **containers.METADATA_OPTIONS) as container:
                context = container.streams.video[0].codec_context
                context.thread_type, context.thread_count = "NONE", 1  # as in Video: FFmpeg's flags depend on threads
                flags = [frame.is_corrupt for frame in container.decode(video=0)]
        except (av.FFmpegError, IndexError, AttributeError):  # the last two: no video stream or no decoder is left
            continue
        try:
            video = Video(damaged)
        except DecodeError:
            continue
        if any(flags) and len(flags) == len(video.times):
            seen += 1
            first, last = flags.index(True), len(flags) - 1
            with pytest.raises(DecodeError, match=f"frame {first}"):
                video.frames([first])
            # A flip can mark the flagged frame as one that no other frame refers to. Then the last one is not refused.
            with contextlib.suppress(DecodeError):
                video.frames([last])
                seen_last += 1
            if first:
                assert len(video.frames([0])) == 1
    assert seen > 20 and seen_last <= seen // 20


def test_strict_decoding_finds_more(tmp_path):
    """Among 200 prepared clips with three flipped bits each. The rest can only be found by a checksum."""
    data = moving(tmp_path / "clip.mp4", gop=4, **PREPARED)
    refused = {
        strict: {seed for seed in range(200) if is_refused(flipped(data, seed), strict)} for strict in (False, True)
    }
    assert refused[True] > refused[False]
    assert len(refused[True]) > 150
    assert not is_refused(data, strict=True)


def is_refused(data, strict):
    try:
        video = Video(data, strict=strict)
        video.frames(range(len(video.times)))
    except DecodeError:
        return True
    return False


@pytest.mark.parametrize(
    "name, codec",
    [
        ("video.mp4", "libx264"),
        ("video.mkv", "libx265"),
        ("video.avi", "mpeg4"),
        ("video.webm", "libvpx-vp9"),
        ("video.mov", "mjpeg"),
        ("video.mp4", "libsvtav1"),
    ],
)
def test_damage_never_ends_an_epoch(tmp_path, name, codec):
    """DecodeError is the only exception: StopIteration would end the data set."""
    data = moving(tmp_path / name, codec=codec, count=24, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    rng, decoded = np.random.default_rng(0), 0
    for number in range(12):
        damaged = bytearray(data)
        start = rng.integers(len(data) if number % 2 else 1000)  # or in the headers
        damaged[start : start + 40] = rng.bytes(len(damaged[start : start + 40]))
        try:
            video = Video(bytes(damaged))
            assert np.isfinite(video.duration) and video.duration > 0 and (np.diff(video.times) > 0).all()
            decoded += len({frame.shape for frame in video.each(range(len(video.times)))}) == 1
        except DecodeError as error:
            assert "\n" not in str(error)
    assert decoded < 12, "no damage was found"


@pytest.mark.parametrize("name", ["video.mp4", "video.ts"])
def test_decoding_takes_no_longer_than_the_limit(tmp_path, name):
    path = write(tmp_path / name)
    with pytest.raises(DecodeError, match=rf"{name}: decoding takes longer than 0 s\. .*data\.limit_seconds.*prepare"):
        Video(path, limit_seconds=0)
    video = Video(path)
    video._limit = 1e-3
    with pytest.raises(DecodeError, match=f"{name}: decoding takes longer than 0.001 s."):
        for _ in range(100):  # one of the calls takes too long
            video.frames(range(60))


def test_the_limit_holds_for_a_clip_or_for_each_frame(tmp_path, monkeypatch):
    """On a clock that goes on by a second at each look, a frame takes a few seconds, and 60 frames take over 60."""
    path, seconds = write(tmp_path / "video.mp4"), itertools.count()
    monkeypatch.setattr(decode, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    video = Video(path, limit_seconds=90)
    video._limit = 40
    assert len(list(video.each(range(60)))) == 60
    assert len(list(video.each([0, 1], one_limit=True))) == 2
    with pytest.raises(DecodeError, match="decoding takes longer than 40 s"):
        list(video.each(range(60), one_limit=True))


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
    )


def test_a_decode_that_hangs_in_c_ends_its_process(tmp_path):
    """FFmpeg waits in `open` for the other end of a pipe, where neither Python nor its own timeout can interrupt it."""
    path = str(tmp_path / "pipe.mp4")
    os.mkfifo(path)
    done = run(
        "import sys; from input_pipeline import decode, watchdog\n"
        "decode.stat.S_ISREG = lambda mode: True\n"
        "watchdog.end_if_stuck(grace_seconds=0.2)\n"
        "decode.Video(sys.argv[1], limit_seconds=0.1)\n",
        path,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"vidformers: {path}: decoding hangs for over 0.3 s; the process ends. ")
    assert "data.limit_seconds" in done.stderr and "input_pipeline.prepare" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_loop_that_keeps_the_interpreters_lock_ends_its_process():
    done = run(
        "import itertools; from input_pipeline import watchdog\n"
        "watchdog.end_if_stuck(held_seconds=0.5)\n"
        "sum(itertools.repeat(0))\n"
    )
    assert done.returncode == -signal.SIGPROF


def test_a_process_that_does_not_hang_goes_on(tmp_path):
    done = run(
        "import sys, time; from input_pipeline import decode, watchdog\n"
        "watchdog.end_if_stuck(grace_seconds=0.1, held_seconds=30)\n"
        "decode.Video(sys.argv[1], limit_seconds=0.1).frames([0])\n"
        "time.sleep(0.5)\n",
        write(tmp_path / "video.mp4", count=3),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not watchdog._calls
