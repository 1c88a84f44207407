"""Windows of long videos: their clips are those of files of that length, and every way a video may end is said."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial

import cv2
import numpy as np
import pytest
from numbered import VFR, picture, read_number, write

from input_pipeline import Pipeline
from input_pipeline.ahead import Ahead
from input_pipeline.annotations import Record
from input_pipeline.augment import test_crops as crops_of
from input_pipeline.errors import DecodeError
from input_pipeline.paths import is_stream
from input_pipeline.sampling import Dense, Uniform
from input_pipeline.stream import FrameStream
from input_pipeline.videos import FrameFolder
from input_pipeline.windows import Cutter, StoredFrames


def crop(image):
    return crops_of(image[None], 32, 3)[:, 0]


UNIFORM = Uniform(4)


def cut(source, sampler=UNIFORM, clips=1, first=0, crop=crop, **settings):
    """Returns the windows of a path or a source, of a second each by default, and the source."""
    source = FrameStream(source, limit_seconds=10) if isinstance(source, str) else source
    cutter = Cutter(sampler, clips, crop, **{"seconds": 1.0, "every": 0.3, **settings})
    try:
        return list(cutter(source, first)), source
    finally:
        source.close()


def spans(windows):
    return [(round(window.start, 3), round(window.end, 3)) for window in windows]


def numbers(window):
    """Returns the numbers that whole frames show."""
    return [read_number(frame) for frame in window.video[0]]


def whole(image):
    return image[None]


@pytest.mark.parametrize("settings", [{}, {"pts": VFR}, {"codec": "mpeg2video"}], ids=["mp4", "vfr", "ts"])
@pytest.mark.parametrize("sampling", ["uniform", "dense", "slowfast"])
def test_a_window_is_the_clip_that_the_pipeline_cuts_from_that_part(tmp_path, settings, sampling):
    path = write(tmp_path / ("video.ts" if "codec" in settings else "video.mp4"), count=60, **settings)
    data = dict(num_classes=1, frames=4, size=32, sampling=sampling, stride=3, workers=0, root=str(tmp_path))
    pipeline = Pipeline(**data | ({"fps": 20.0} if sampling == "slowfast" else {}))
    windows, _ = cut(path, pipeline.test_sampler(), clips=2, seconds=0.52, every=0.37, start=0.1)
    assert len(windows) > 4
    records = tuple(Record(n, path, 0, 0, window.start, window.end) for n, window in enumerate(windows))
    for window, batch in zip(
        windows, pipeline.val_batches(batch_size=1, clips=2, crops=3, records=records), strict=True
    ):
        np.testing.assert_array_equal(window.video, batch["video"][0])
        np.testing.assert_array_equal(window.index, batch["index"][0])


@pytest.mark.quick
def test_windows_cover_the_video_and_the_last_one_ends_with_it(tmp_path):
    path = write(tmp_path / "video.mp4", count=60)  # 2.4 s
    assert spans(cut(path)[0]) == [(0, 1), (0.3, 1.3), (0.6, 1.6), (0.9, 1.9), (1.2, 2.2), (1.4, 2.4)]
    assert spans(cut(path, every=0.7)[0]) == [(0, 1), (0.7, 1.7), (1.4, 2.4)]
    assert spans(cut(path, every=2.0)[0]) == [(0, 1), (1.4, 2.4)]
    assert spans(cut(path, seconds=9.0)[0]) == [(0, 2.4)]
    assert spans(cut(path, start=0.5, end=2.0)[0]) == [(0.5, 1.5), (0.8, 1.8), (1.0, 2.0)]
    assert spans(cut(path, start=0.5, end=0.9)[0]) == [(0.5, 0.9)]
    assert spans(cut(path, start=2.0, end=9.0)[0]) == [(2.0, 2.4)]
    assert cut(path, start=3.0)[0] == []
    all_windows = cut(path, Dense(4, 3))[0]
    for first in range(1, 7):
        rest = cut(path, Dense(4, 3), first=first)[0]
        assert spans(rest) == spans(all_windows)[first:]
        for one, other in zip(rest, all_windows[first:], strict=True):
            np.testing.assert_array_equal(one.video, other.video)


@pytest.mark.quick
def test_folders_of_frames_and_one_frame_have_windows(tmp_path):
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number:03d}.jpg"), picture(number))
    (tmp_path / "005.jpg").write_bytes(b"no picture")
    windows, source = cut(
        StoredFrames(FrameFolder(str(tmp_path), 10.0)), Uniform(2), crop=whole, seconds=0.4, every=0.4
    )
    assert [window.video is None for window in windows] == [False, True, False, False, False] and source.end == 2.0
    assert [numbers(window) for window in windows if window.video is not None] == [[1, 3], [9, 11], [13, 15], [17, 19]]
    (window,), _ = cut(write(tmp_path / "one.mp4", count=1), crop=whole)
    assert numbers(window) == [0] * 4 and window.end == pytest.approx(0.04)


def test_what_comes_before_a_break_is_cut_and_the_break_is_said(tmp_path):
    path = write(
        tmp_path / "video.mp4", count=200, gop=20, options={"bf": "0"}, container_options={"movflags": "faststart"}
    )
    whole = cut(path, every=0.5)[0]
    data = open(path, "rb").read()
    broken = str(tmp_path / "broken.mp4")
    with open(broken, "wb") as file:
        file.write(data[: len(data) // 2])
    windows, source = cut(broken, every=0.5)
    assert source.problem == "the file is truncated" and 3 < len(windows) < len(whole)
    read = [window for window in windows if window.video is not None]
    assert len(read) >= len(windows) - 3
    for one, other in zip(read[:-1], whole, strict=False):
        np.testing.assert_array_equal(one.video, other.video)
    middle = len(data) // 2
    with open(broken, "wb") as file:
        file.write(data[:middle] + bytes(200) + data[middle + 200 :])
    windows, source = cut(broken, every=0.5)
    assert spans(windows) == spans(whole) and source.problem == ""
    damaged = [number for number, window in enumerate(windows) if window.video is None]
    assert damaged and len(damaged) <= 6 and damaged == list(range(damaged[0], damaged[-1] + 1))
    for one, other in zip(windows, whole, strict=True):
        if one.video is not None:
            np.testing.assert_array_equal(one.video, other.video)
    for content, words in ((b"", "empty.mp4"), (b"text" * 99, "empty.mp4"), (data[:300], "empty.mp4")):
        (tmp_path / "empty.mp4").write_bytes(content)
        with pytest.raises(DecodeError, match=words):
            cut(str(tmp_path / "empty.mp4"))
    with pytest.raises(DecodeError, match=r"none\.mp4: No such file"):
        cut(str(tmp_path / "none.mp4"))


def test_a_clock_that_leaps_or_goes_back_goes_on_by_one_frame(tmp_path):
    parts = [write(tmp_path / f"{name}.ts", count=50) for name in "ab"]
    (tmp_path / "both.ts").write_bytes(b"".join(open(part, "rb").read() for part in parts))
    windows, source = cut(str(tmp_path / "both.ts"), every=1.0)
    assert source.end == pytest.approx(4.0, abs=0.1) and len(windows) in (4, 5)
    pts = [40 * number + 3_600_000 * (number >= 30) for number in range(60)]
    windows, source = cut(write(tmp_path / "leap.mkv", pts=pts), every=1.0)
    assert source.end == pytest.approx(2.4, abs=0.05)
    assert source.remarks[-1].startswith("The times of 1 frames do not ascend, or leap.")


def test_the_first_frames_of_a_growing_file_do_not_wait_for_its_next_bytes(tmp_path):
    growing = tmp_path / "growing.ts"
    os.rename(write(tmp_path / "video.ts", count=250, gop=10), growing)
    source = FrameStream(f"file:{growing}", limit_seconds=600.0)  # if it waited, it would do so for this long
    times = [frame.time for frame in itertools.islice(source.frames(lambda image: image), 100)]
    assert len(times) == 100
    source.close()


def test_a_growing_file_and_a_pipe_are_read_until_they_end(tmp_path):
    path = write(tmp_path / "video.ts", count=250, gop=10)
    data = open(path, "rb").read()
    whole = cut(path)[0]
    growing = tmp_path / "growing.ts"
    growing.write_bytes(data[: len(data) // 2])

    def write_on():
        with open(growing, "ab") as file:
            for start in range(len(data) // 2, len(data), 20_000):
                time.sleep(0.02)
                file.write(data[start : start + 20_000])
                file.flush()

    writer = threading.Thread(target=write_on)
    writer.start()
    source = FrameStream(f"file:{growing}", limit_seconds=1.0)
    windows, _ = cut(source)
    writer.join()
    assert source.is_live and source.problem == "no data came for 1 s"
    assert spans(windows)[: len(whole) - 1] == spans(whole)[:-1]
    np.testing.assert_array_equal(windows[-1].video.shape, whole[-1].video.shape)

    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def feed():
        with contextlib.suppress(BrokenPipeError), open(path, "rb") as file, open(fifo, "wb") as pipe:
            shutil.copyfileobj(file, pipe)  # the reader may close the pipe first

    threading.Thread(target=feed, daemon=True).start()
    windows, source = cut(FrameStream(fifo, limit_seconds=5.0), end=5.0)
    assert source.is_live and spans(windows)[:5] == spans(whole)[:5]


@pytest.mark.quick
def test_numbers_and_addresses_are_streams():
    for address in ("0", "12", "rtsp://host/path", "HTTP://host/a.m3u8", "udp://@:1234", "pipe:0", "file:grows.ts"):
        assert is_stream(address)
    for path in ("clip.mp4", "./0", "0.mp4", "a:b.mp4", "gs://bucket/x.mp4", "C:\\x.mp4", "/dev/video0", ""):
        assert not is_stream(path)


@pytest.mark.quick
def test_items_of_a_live_video_are_dropped_and_others_wait():
    made = []

    def make(pause):
        for number in range(20):
            time.sleep(pause)
            made.append(number)
            yield number

    assert list(Ahead(partial(make, 0), ready=2)) == list(range(20))
    fast = Ahead(partial(make, 0), ready=2, clock=lambda number: 60.0 * number)  # faster than its clock
    assert list(fast) == list(range(20)) and fast.dropped == 0
    live = Ahead(partial(make, 0.01), ready=2, clock=lambda number: 0.01 * number)
    seen = []
    for number in live:
        seen.append(number)
        time.sleep(0.05)
    assert seen == sorted(seen) and live.dropped == 20 - len(seen) > 0 and seen[-1] == 19
    made.clear()
    closed = Ahead(partial(make, 0), ready=2)
    assert next(closed) == 0
    closed.close()
    time.sleep(0.2)
    assert len(made) <= 5

    def fail():
        yield 1
        raise DecodeError("broken")

    items = Ahead(fail, ready=2)
    assert next(items) == 1
    with pytest.raises(DecodeError, match="broken"):
        next(items)
    assert list(items) == []


def test_the_windows_of_a_long_video_take_flat_memory(tmp_path):
    """The crops in memory are those of one window, and the frames in memory are two."""
    path = write(tmp_path / "long.mp4", count=2000, options={"preset": "ultrafast"})
    program = (
        "import sys, resource\n"
        "from input_pipeline.stream import FrameStream\n"
        "from input_pipeline.windows import Cutter\n"
        "from input_pipeline.sampling import Uniform\n"
        "import numpy as np\n"
        "crop = lambda image: np.broadcast_to(image[None, :, :1], (1, 64, 4096, 3)).copy()\n"  # 0.8 MB a frame
        "peaks = []\n"
        "for window in Cutter(Uniform(4), 1, crop, seconds=0.4, every=1.0)(FrameStream(sys.argv[1])):\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(len(peaks), peaks[-1] - peaks[4])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    count, growth = map(int, done.stdout.split())
    assert count == 81 and growth < 20_000, done.stdout  # kilobytes; all frames would take 1,600,000
