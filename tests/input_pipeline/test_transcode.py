"""A transcoded clip shows the frames of its video at their times, in closed groups, and damage to it is detected."""

import fractions
import hashlib
import io
import os

import av
import cv2
import numpy as np
import pytest
from numbered import VFR, picture, read_number, write

from input_pipeline import shard_plan, transcode
from input_pipeline.annotations import Record
from input_pipeline.decode import Video
from input_pipeline.errors import DataError, DecodeError
from input_pipeline.shards import read_video
from input_pipeline.transcode import Encoding, Task, frame_rate, verify

FLIPS = 200


def clip_of(path, **encoding):
    return transcode.transcode(Video(str(path)), Encoding(**encoding))


def numbers(video, indices=None):
    """Returns the numbers that the frames show, whatever their size."""
    frames = video.frames(range(len(video.times)) if indices is None else indices)
    return [read_number(cv2.resize(frame, (96, 64), interpolation=cv2.INTER_NEAREST)) for frame in frames]


def packets(data):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        return [
            (packet.pts, packet.dts, packet.is_keyframe, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def nal_types(packet):
    """Returns the NAL unit types of one packet. A length of four bytes precedes each unit (ISO 14496-15)."""
    types = []
    while packet:
        length = int.from_bytes(packet[:4])
        types.append(packet[4] & 31)
        packet = packet[4 + length :]
    return types


@pytest.mark.parametrize(
    "kind",
    [
        dict(),
        dict(gop=3, options={"bf": "2"}),
        dict(audio=True),
        dict(count=1),
        dict(codec="libx265", options={"x265-params": "log-level=none:keyint=12:open-gop=1"}),
    ],
)
def test_a_constant_rate_keeps_every_frame_once_at_its_time(tmp_path, kind):
    path = write(tmp_path / "video.mp4", **kind)
    facts, data = clip_of(path)
    clip, source = Video(data), Video(path)
    assert numbers(clip) == list(range(len(source.times)))
    np.testing.assert_allclose(clip.times, source.times, atol=1e-9)
    assert clip.duration == pytest.approx(source.duration, abs=1e-9)
    assert facts == {
        "frames": len(source.times),
        "fps": "25",
        "width": 96,
        "height": 64,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    difference = clip.frames(range(len(clip.times))).astype(float) - source.frames(range(len(clip.times)))
    assert np.abs(difference).mean() < 3


def test_a_coarse_clock_keeps_every_frame_once(tmp_path):
    """Matroska counts milliseconds: at 30000/1001 frames a second, frames are 33 or 34 ms apart."""
    path = str(tmp_path / "video.mkv")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fractions.Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    facts, data = clip_of(path)
    assert facts["fps"] == "30000/1001"
    assert numbers(Video(data)) == list(range(200))


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_a_variable_rate_becomes_constant(tmp_path, name):
    path = write(tmp_path / name, pts=VFR)
    facts, data = clip_of(path)
    clip, source = Video(data), Video(path)
    rate = float(fractions.Fraction(facts["fps"]))
    assert rate == pytest.approx(60 / source.duration, rel=1e-3)
    np.testing.assert_allclose(clip.times, np.arange(facts["frames"]) / rate, atol=1e-9)
    assert clip.duration == pytest.approx(source.duration, abs=0.5 / rate + 1e-3)
    shown = np.searchsorted(np.array(VFR) / 1000, (np.arange(facts["frames"]) + 0.5) / rate, side="right") - 1
    assert numbers(clip) == shown.tolist() and len(set(shown)) < 60


@pytest.mark.quick
@pytest.mark.parametrize(
    "count, duration, rate",
    [
        (250, 10.0, "25"),
        (300, 10.01, "30000/1001"),
        (240, 10.01, "24000/1001"),
        (10, 0.8, "25/2"),
        (1, 0.04, "25"),
        (1, 10.0, "1/10"),
        (173, 10.0, "173/10"),
        (1, 1e5, "1/1001"),
        (2500, 100.0005, "25"),
        (500, 25.0250, "20000/1001"),
    ],
)
def test_frame_rates_are_integers_or_simple_fractions(count, duration, rate):
    assert frame_rate(count, duration) == fractions.Fraction(rate)


@pytest.mark.parametrize("gop", [1, 4, 12])
def test_groups_are_closed_and_short_and_frames_in_order(tmp_path, gop):
    _, data = clip_of(write(tmp_path / "video.mp4", audio=True), gop=gop)
    with av.open(io.BytesIO(data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.name == "h264"
    encoded = packets(data)
    assert [pts for pts, *_ in encoded] == [dts for _, dts, *_ in encoded] == sorted(pts for pts, *_ in encoded)
    for number, (_, _, key, packet) in enumerate(encoded):
        units = set(nal_types(packet)) & {1, 5}  # slices of other pictures, and of IDR pictures
        assert key == (number % gop == 0) and units == ({5} if key else {1})


@pytest.mark.quick
@pytest.mark.parametrize("instructions", ["0", "sse2", "avx2"])
def test_the_bytes_do_not_depend_on_the_instruction_set(tmp_path, monkeypatch, instructions):
    """x264's AVX-512 functions would give other bytes, and sometimes different ones in two runs of one machine."""
    path = write(tmp_path / "video.mp4", count=20)
    _, data = clip_of(path)
    monkeypatch.setattr(transcode, "_X264_PARAMS", f"{transcode._X264_PARAMS}:asm={instructions}")
    assert clip_of(path)[1] == data


def test_groups_decode_alone(tmp_path):
    _, data = clip_of(write(tmp_path / "video.mp4"))
    frames = Video(data).frames(range(60))
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        for start in (56, 20, 0):
            container.seek(int(start / 25 / stream.time_base), stream=stream)
            frame = next(container.decode(stream))
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), frames[start])


def test_rotation_is_applied(tmp_path):
    path = write(tmp_path / "video.mp4", count=5, rotation=90)
    facts, data = clip_of(path)
    assert (facts["width"], facts["height"]) == (64, 96)
    with av.open(io.BytesIO(data)) as container:
        assert all(frame.rotation == 0 for frame in container.decode(video=0))
    turned = np.rot90(Video(data).frames(range(5)), -1, axes=(1, 2))
    assert [read_number(frame) for frame in turned] == list(range(5))


@pytest.mark.parametrize(
    "height, width, size",
    [
        (65, 97, (64, 96)),
        (1, 33, (2, 32)),
        (256, 340, (256, 340)),
        (300, 257, (298, 256)),
        (720, 1280, (256, 454)),
        (1280, 720, (454, 256)),
        (101, 75, (100, 74)),
    ],
)
def test_sizes_are_even_and_never_larger(tmp_path, height, width, size):
    assert Encoding().size(height, width) == size
    path = str(tmp_path / "video.mkv")
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (4, 4, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    facts, data = clip_of(path, crf=10)
    assert (facts["height"], facts["width"]) == size
    frames = Video(data).frames([0, 2])
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    assert frames.shape[1:3] == size and np.abs(frames.astype(float) - expected).mean() < 8


def test_a_video_of_one_group_is_decoded_once(tmp_path):
    video = Video(write(tmp_path / "video.mp4", gop=60))
    assert transcode.transcode(video, Encoding())[0]["frames"] == 60
    assert video.decoded == 60


def test_flipped_bits_in_a_clip_are_never_published(tmp_path):
    """Damage between the encoder and the disk. Strict decoding alone would accept some of these clips."""
    path = write(tmp_path / "video.mp4", count=12)
    task = Task(Record(0, path, 0, 1, name="video.mp4"), Encoding())
    row, data = transcode.run(task)
    job, rng, caught = shard_plan.ShardJob("train", 0, 1, (task,)), np.random.default_rng(0), 0
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(FLIPS):
        damaged = bytearray(data)
        for place in rng.choice(len(data), 3, replace=False):
            damaged[place] ^= 1 << rng.integers(8)
        try:
            verify(bytes(damaged), fractions.Fraction(25), 12, 64, 96)
        except DecodeError:
            caught += 1
        with pytest.raises(OSError, match="other bytes than were written"):
            shard_plan.run_job(str(out), job, [(dict(row), bytes(damaged))])
        assert not os.listdir(out)
    assert caught > FLIPS // 4
    shard_plan.run_job(str(out), job, [(row, data)])
    assert read_video(str(out / job.shard), 0) == data


@pytest.mark.quick
def test_encodings_out_of_range_are_refused():
    for wrong in (dict(short_side=8), dict(gop=0), dict(crf=52)):
        with pytest.raises(DataError, match=next(iter(wrong))):
            Encoding(**wrong)


def test_a_recording_that_was_paused_keeps_every_frame_once(tmp_path):
    """Its frames count as equally long, as in training. The metadata name the video."""
    path = write(tmp_path / "paused.mkv", count=20, pts=[40 * n + 60000 * (n > 5) for n in range(20)])
    metadata, data = transcode.run(Task(Record(0, path, 0, 1), Encoding()))
    assert numbers(Video(data)) == list(range(20)) and metadata["fps"] == "25"
    assert metadata["path"] == path and "1 of 20 frames fills 99%" in metadata["remarks"]
