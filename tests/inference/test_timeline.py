"""Long videos: segments lie where the classes are, files are whole, and a stopped command continues."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import cv2
import numpy as np
import pytest
from command import ROOT, one_sentence
from names import HOSTILE, assert_harmless

import main
from vidformers import ConfigError
from vidformers.inference.predictor import Predictor
from vidformers.inference.timeline.picture import Grid
from vidformers.inference.timeline.segments import Segment, Segments, WindowPrediction, captions, clock
from vidformers.training.evaluate import EvalProtocol
from vidformers.training.scoring import SINGLE_LABEL

CLASSES = ("dark", "middle", "bright")
LEVELS = (20, 120, 230)


@pytest.mark.quick
def test_a_part_of_a_video_is_predicted_by_itself(tmp_path):
    path = write_levels(tmp_path / "a.mp4", [("dark", 2), ("bright", 2), ("middle", 2)])
    names = [f"{path}#t=0,2", f"{path}#t=2,4", f"{path}#t=4,"]
    clips = list(hand_made().clips(names))
    assert [clip.video for clip in clips] == names and not any(clip.error for clip in clips)
    assert [abs(clip.frames.mean() - np.array(LEVELS)).argmin() for clip in clips] == [0, 2, 1]
    with pytest.raises(ConfigError, match="is a part of a video. Give the video with start and end"):
        hand_made().timeline(names[0])


@pytest.mark.quick
def test_times_are_rounded_and_show_tenths():
    assert [clock(seconds) for seconds in (0, 8.5, 59.96, 3723.04)] == [
        "0:00:00.0",
        "0:00:08.5",
        "0:01:00.0",
        "1:02:03.0",
    ]
    assert clock(62.6, decimals=0) == "0:01:03"


@pytest.mark.quick
@pytest.mark.parametrize(("every", "length"), [(0.5, 1.0), (0.3, 0.64), (2.0, 0.5)])
def test_the_picture_shows_each_window_around_its_centre(every, length):
    """Windows of two classes in turn. Each stands for half of `every` on each side of its centre."""
    count, end = 9, 8 * every + length
    grid = Grid(0.0, end, every, 2)
    for number in range(count):
        grid.add(WindowPrediction(number * every, number * every + length, np.eye(2)[number % 2]))
    seconds = (np.arange(grid.values.shape[1]) + 0.5) * end / grid.values.shape[1]
    nearest = np.abs(seconds[:, None] - (np.arange(count) * every + length / 2)).argmin(axis=1)
    between = np.abs((seconds - length / 2) / every % 1 - 0.5) < 1 / 8  # near the change from one window to the next
    shown = grid.values.argmax(axis=0) == nearest % 2
    assert shown[~between].all() and (np.nansum(grid.values, axis=0) <= 1).all()


def write_levels(path, parts, rate=25):
    """Writes a video of parts, (class, seconds) each, whose brightness is that of the class. Returns the path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if not str(path).endswith(".ts") else "mpeg2video", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 32, 32, "yuv420p", 12
        for label, seconds in parts:
            picture = np.full((32, 32, 3), LEVELS[CLASSES.index(label)], np.uint8)
            for _ in range(round(seconds * rate)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def tell_brightness(video, index):
    """Returns the share of frames of each class, by their brightness, and no features."""
    frames = video.reshape(len(video), -1, *video.shape[3:]).mean(axis=(2, 3, 4))
    classes = np.abs(frames[..., None] - np.array(LEVELS)).argmin(axis=-1)
    return (classes[..., None] == np.arange(len(LEVELS))).mean(axis=1), np.zeros((len(video), 1))


def hand_made(**data):
    """Returns a predictor that tells brightness, with dense clips of 8 frames of every second frame: 0.64 s."""
    predictor = Predictor.__new__(Predictor)
    predictor.classes, predictor.step, predictor.remarks = CLASSES, 7, []
    predictor.protocol, predictor._full_batch, predictor._clip_seconds = EvalProtocol(crops=1), 4, None
    predictor.scoring = SINGLE_LABEL
    predictor.data = dict(num_classes=3, frames=8, stride=2, size=16, sampling="dense", workers=0) | data
    predictor.compute = tell_brightness
    return predictor


@pytest.fixture
def predict(monkeypatch, capsys):
    """Runs `--mode=predict` with the hand-made model; returns (status, stdout, stderr)."""
    monkeypatch.setattr("vidformers.inference.timeline.command.load_and_log", lambda config, workdir: hand_made())

    def call(video, *flags):
        arguments = [f"--config={ROOT}/configs/demo.py:vit", "--workdir=nowhere", "--mode=predict", f"--video={video}"]
        status = main.main(["main.py", *arguments, *flags])
        return status, *capsys.readouterr()

    return call


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


PARTS = [("dark", 3.2), ("bright", 2.12), ("middle", 1.6), ("dark", 4.04), ("bright", 1.4)]


@pytest.mark.parametrize("every", [0.2, 0.5, 1.0])
def test_the_ends_of_segments_are_those_of_the_spliced_clips(tmp_path, predict, every):
    path = write_levels(tmp_path / "spliced.mp4", PARTS)
    status, out, err = predict(path, f"--every={every}", f"--out={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    found = rows(tmp_path / "out" / "segments.jsonl")
    assert [row["class"] for row in found] == [label for label, _ in PARTS]
    ends = np.cumsum([0.0] + [seconds for _, seconds in PARTS])
    for row, start, end in zip(found, ends[:-1], ends[1:], strict=True):
        assert abs(row["start"] - start) <= every and abs(row["end"] - end) <= every
        assert 0.5 < row["probability"] <= row["peak"] <= 1
    assert (found[0]["start"], found[-1]["end"]) == (0, pytest.approx(ends[-1], abs=1e-3))
    windows = rows(tmp_path / "out" / "windows.jsonl")
    assert windows[1]["start"] == every and windows[0]["end"] == pytest.approx(0.64)
    assert windows[0]["top"][0]["class"] == "dark" and sum(windows[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    with av.open(str(tmp_path / "out" / "captions.vtt")) as container:  # FFmpeg reads them
        cues = [(packet.pts, packet.duration, bytes(packet)) for packet in container.demux() if packet.size]
    assert [text for *_, text in cues] == [label.encode() for label, _ in PARTS]
    assert [pts for pts, *_ in cues] == [round(1000 * row["start"]) for row in found]
    picture = cv2.imread(str(tmp_path / "out" / "timeline.png"))
    assert picture.shape[1] == 1100 and picture.std() > 20
    about = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert about["complete"] and about["window"] == pytest.approx(0.64) and about["classes"] == list(CLASSES)
    assert "segments" in out and "Wrote" in out


def test_from_python_as_from_the_command_line(tmp_path, predict):
    path = write_levels(tmp_path / "spliced.mp4", PARTS)
    predict(path, "--every=0.5", "--from=2", "--to=8", "--threshold=0.9", f"--out={tmp_path / 'out'}")
    timeline = hand_made().timeline(path, 0.5, start=2, end=8, threshold=0.9)
    written = rows(tmp_path / "out" / "windows.jsonl")
    assert [(row["start"], row["end"]) for row in written] == [
        (pytest.approx(each.start), pytest.approx(each.end)) for each in timeline.windows
    ]
    np.testing.assert_allclose(
        [row["probabilities"] for row in written], [each.probabilities for each in timeline.windows], atol=1e-6
    )
    assert [row["class"] for row in rows(tmp_path / "out" / "segments.jsonl")] == [
        segment.name for segment in timeline.segments
    ]
    frames = np.concatenate([np.full((50, 32, 32, 3), level, np.uint8) for level in LEVELS])
    timeline = hand_made(frame_rate=25.0).timeline(frames, 0.25)
    assert [segment.name for segment in timeline.segments] == list(CLASSES)
    with pytest.raises(ConfigError, match="0 may not end"):
        hand_made().timeline("0")
    with pytest.raises(ConfigError, match="is a folder without numbered JPEG frames"):
        hand_made().timeline(tmp_path)


def test_a_stopped_command_continues_and_a_finished_one_takes_another_threshold(tmp_path, predict):
    path, out = write_levels(tmp_path / "spliced.mp4", PARTS), tmp_path / "out"
    predict(path, "--every=0.3", f"--out={tmp_path / 'whole'}")
    complete = (tmp_path / "whole" / "windows.jsonl").read_text()
    predict(path, "--every=0.3", f"--out={out}")
    lines = complete.splitlines(keepends=True)
    for count in (5, len(lines) - 1, len(lines)):  # as a killed process leaves them
        for name in ("segments.jsonl", "captions.vtt", "timeline.png"):
            (out / name).unlink()
        about = json.loads((out / "timeline.json").read_text()) | {"complete": False}
        (out / "timeline.json").write_text(json.dumps(about))
        (out / "windows.jsonl").write_text("".join(lines[:count]) + '{"start": 1.')
        status, log, err = predict(path, "--every=0.3", f"--out={out}")
        assert (status, err) == (0, "") and f"The first {count} windows are there already" in log
        assert (out / "windows.jsonl").read_text() == complete
        assert (out / "segments.jsonl").read_text() == (tmp_path / "whole" / "segments.jsonl").read_text()
    before = (out / "windows.jsonl").stat().st_mtime_ns
    status, log, _ = predict(path, "--every=0.3", f"--out={out}", "--threshold=0.9", "--shortest=5")
    assert status == 0 and (out / "windows.jsonl").stat().st_mtime_ns == before and "Predicted" not in log
    assert "No segment of at least 5 s reaches --threshold=0.9 throughout. The highest probability is 100.0%" in log
    assert (out / "segments.jsonl").read_text() == "" and (out / "captions.vtt").read_text() == "WEBVTT\n"
    status, _, err = predict(path, "--every=0.4", f"--out={out}")
    assert status == 2 and "holds windows with other settings: every is 0.3 there and 0.4 now" in one_sentence(err)


def test_mistakes_in_flags_and_videos(tmp_path, predict):
    path = write_levels(tmp_path / "second.mp4", [("bright", 1)])
    (tmp_path / "text.mp4").write_text("no video")
    for video, flags, words in (
        (path, ["--every=0"], "--every=0.0 must be seconds from 0.001"),
        (path, ["--every=often"], "--every=often must be seconds, a number"),
        (path, ["--every=1", "--window=-1"], "--window=-1.0 must be seconds"),
        (path, ["--every=1", "--from=3", "--to=2"], "--to=2.0 must be seconds after --from=3.0"),
        (path, ["--every=1", "--from=5"], "second.mp4 ends before --from=5, after 1.0 s"),
        (path, ["--every=1", "--threshold=2"], "--threshold=2.0 must be a probability"),
        (path, ["--every=1", "--shard=0/2"], "--shard is not for the windows of a video"),
        (path, ["--window=2"], "--window=2 is for the windows of a video. Add --every=SECONDS"),
        (tmp_path / "none.mp4", ["--every=1"], "none.mp4: No such file or directory"),
        (tmp_path / "text.mp4", ["--every=1"], "text.mp4"),
        (tmp_path, ["--every=1"], f"{tmp_path} is a folder without numbered JPEG frames, and windows are those of one"),
        ("9", ["--every=1"], "9: No such file or directory"),
    ):
        status, out, err = predict(video, f"--out={tmp_path / 'out'}", *flags)
        assert status == 2, (flags, out)
        assert words in one_sentence(err)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="Give the seconds of a window with --window"):
        hand_made(sampling="uniform", root=str(tmp_path / "nowhere")).timeline(path)
    (window,) = hand_made(sampling="uniform").timeline(path, window=2.0).windows
    assert (window.start, window.end) == (0, 1)


def test_uniform_clips_have_windows_of_the_median_training_clip(tmp_path):
    for number, seconds in enumerate((0.4, 0.8, 2.0)):
        write_levels(tmp_path / f"{number}.mp4", [("dark", seconds)])
    (tmp_path / "train.csv").write_text("path,label\n0.mp4,0\n1.mp4,1\n2.mp4,2\n")
    path = write_levels(tmp_path / "long.mp4", PARTS)
    model = hand_made(sampling="uniform", root=str(tmp_path), source="csv")
    assert model.timeline(path).windows[0].end == pytest.approx(0.8)
    model._clip_seconds = 1.5  # as run.json says
    assert model.timeline(path).windows[0].end == 1.5


def test_what_a_broken_video_showed_is_written(tmp_path, predict):
    broken = tmp_path / "broken.mp4"
    with (
        av.open(write_levels(tmp_path / "whole.mp4", PARTS)) as source,
        av.open(str(broken), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) - (len(data) - data.find(b"mdat")) // 2])
    status, log, err = predict(broken, "--every=0.5", f"--out={tmp_path / 'out'}")
    assert (status, err) == (0, "") and "the file is truncated. What comes before is predicted." in log
    found = rows(tmp_path / "out" / "segments.jsonl")
    assert found and [row["class"] for row in found] == [label for label, _ in PARTS][: len(found)]
    about = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert about["problem"] == "the file is truncated"


def test_a_stream_prints_a_line_for_each_window_until_it_is_stopped(tmp_path, predict):
    """The stream comes through a pipe, at its own rate. The signal comes while no frame does."""
    path, fifo, out = write_levels(tmp_path / "stream.ts", PARTS), tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)

    def feed():
        with open(fifo, "wb") as pipe:
            pipe.write(open(path, "rb").read())
            pipe.flush()
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not (out.exists() and len(rows(out / "windows.jsonl")) >= 10):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    status, log, err = predict(fifo, f"--out={out}")
    feeder.join()
    assert (status, err) == (130, "")
    assert f"Stopped reading {fifo}. {out} holds what was seen." in log
    windows, found = rows(out / "windows.jsonl"), rows(out / "segments.jsonl")
    assert len(windows) >= 10 and log.count(" s  ") >= len(windows) and "0.0 to 0.6 s  dark 100.0%" in log
    assert [row["class"] for row in found] == [label for label, _ in PARTS][: len(found)] and len(found) >= 3
    status, _, err = predict("0", f"--out={out}")
    assert status == 2 and "cannot be continued" in one_sentence(err) or "No such file" in err


class Quiet(SimpleHTTPRequestHandler):
    """A server that sends whole files and no parts of them."""

    def log_message(self, *_):
        pass


def test_an_mp4_file_over_http_needs_its_index_at_the_front(tmp_path, predict):
    with av.open(str(tmp_path / "a clip.mp4"), "w") as container:  # larger than what FFmpeg reads ahead
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height = 256, 256
        for picture in np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    write_levels(tmp_path / "stream.ts", PARTS)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        status, _, err = predict(f"{address}/a%20clip.mp4")
        assert status == 2 and "write it with FFmpeg's -movflags +faststart." in one_sentence(err)
        status, log, err = predict(f"{address}/stream.ts")
        assert (status, err) == (0, "") and log.count("dark 100.0%") >= 4
        server.shutdown()


def windows_of(*rows, every=1.0, length=2.0):
    """Returns windows with the given probabilities, None for a damaged one."""
    return [
        WindowPrediction(every * number, every * number + length, None if row is None else np.array(row, np.float32))
        for number, row in enumerate(rows)
    ]


def find(windows, classes=("a", "b"), threshold=0.5, shortest=0.0, every=1.0, several=False):
    segments = Segments(classes, threshold, shortest, every, several)
    for window in windows:
        segments.add(window)
    return [(each.name, each.start, each.end) for each in segments.finish()]


@pytest.mark.quick
def test_segments_of_one_and_of_several_labels():
    windows = windows_of([0.9, 0.1], [0.8, 0.6], [0.3, 0.7], None, [0.2, 0.9])
    assert find(windows) == [("a", 0, 2.5), ("b", 2.5, 3.5), ("b", 4.5, 6)]
    assert find(windows, several=True) == [("a", 0, 2.5), ("b", 1.5, 3.5), ("b", 4.5, 6)]
    assert find(windows, threshold=0.85) == [("a", 0, 1.5), ("b", 4.5, 6)]
    assert find(windows, threshold=0.25, several=True)[0] == ("a", 0, 3.5)
    assert find(windows, threshold=0.25)[0] == ("a", 0, 2.5)  # one label: the likeliest class alone
    assert find(windows, shortest=1.2) == [("a", 0, 2.5), ("b", 4.5, 6)]
    assert find(windows, threshold=0.95) == [] and find([]) == []
    assert find(windows_of([0.9, 0.1])) == [("a", 0, 2)]
    dropped = windows_of(*[[0.9, 0.1]] * 8)
    assert find(dropped[:2] + dropped[5:]) == [("a", 0, 2.5), ("a", 5.5, 9)]  # what was not seen is no segment


@pytest.mark.quick
def test_captions_show_any_name_as_text(tmp_path):
    names = [*HOSTILE.values(), "<b>&amp; -->", "two\nlines\n\nand a gap"]
    segments = [Segment(name, 3600.0 * number, 3600.0 * number + 0.0001, 1, 1) for number, name in enumerate(names)]
    text = captions(segments)
    assert_harmless(text)
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.001\n") and text.count("-->") == len(names)
    with av.open(io.BytesIO(text.encode()), format="webvtt") as container:
        cues = [(packet.pts, packet.duration) for packet in container.demux() if packet.size]
    assert cues == [(3_600_000 * number, 1) for number, name in enumerate(names) if name]


def test_a_signal_ends_the_command_with_status_130(tmp_path):
    """The whole program, whose model waits for a camera that sends nothing."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = (
        "import sys; sys.path[:0] = ['tests', 'tests/inference']\n"
        "import test_timeline, main\n"
        "import vidformers.inference.timeline.command as command\n"
        "command.load_and_log = lambda config, workdir: test_timeline.hand_made()\n"
        "main.install_signal_handlers()\n"
        f"status = main.main(['main.py', '--config=configs/demo.py:vit', '--mode=predict', '--video={fifo}',\n"
        "    '--every=1'])\n"
        "sys.exit(status)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert "Predicting a window every 1 s" in process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "") and "Stopped reading" in out
