"""Decoded frames are exactly the requested ones, in every container, codec and grouping of pictures."""

import ctypes
import gc
import shutil
import struct
import subprocess
from types import SimpleNamespace

import av
import numpy as np
import pytest
from numbered import (
    HEIGHT,
    VFR,
    WIDTH,
    decode_all,
    decode_planes,
    picture,
    pictures,
    read_number,
    silence,
    without_vui,
    write,
    write_packed,
)

from input_pipeline import decode
from input_pipeline.decode import Info, Video
from input_pipeline.errors import DecodeError
from input_pipeline.sampling import Uniform
from input_pipeline.stream import FrameStream


def x264(params, **kwargs):
    return dict(options={"x264-params": params}, **kwargs)


def x265(params, **kwargs):
    return dict(codec="libx265", options={"x265-params": f"log-level=none:keyint=12:{params}"}, **kwargs)


FILES = {
    # H.264, for which unreferenced pictures are not decoded: every way in which pictures refer to others.
    "long_gop.mp4": {},  # x264's default: B-frames, some of them references
    "short_gop.mp4": dict(gop=3, options={"bf": "2"}),
    "intra.mp4": dict(gop=1),
    "open_gop.mp4": x264("keyint=12:open-gop=1:bframes=3"),
    "open_gop.mkv": x264("keyint=12:open-gop=1:bframes=3"),
    "low_delay.mp4": dict(options={"tune": "zerolatency"}),
    "baseline.mp4": dict(options={"profile": "baseline"}),
    "pyramid.mp4": x264("keyint=30:bframes=8:b-pyramid=normal:b-adapt=0"),
    "strict_pyramid.mp4": x264("keyint=30:bframes=4:b-pyramid=strict:b-adapt=0"),
    "many_references.mp4": x264("keyint=60:ref=16:bframes=16:b-adapt=0"),
    "temporal_direct.mp4": x264("direct=temporal:bframes=4:b-adapt=0:weightp=2:weightb=1:keyint=40"),
    "interlaced.mp4": x264("tff=1:keyint=30:bframes=3"),
    "interlaced_open.mp4": x264("bff=1:keyint=12:bframes=3:open-gop=1"),
    "fake_interlaced.mp4": x264("fake-interlaced=1:keyint=30"),
    "intra_refresh.mp4": x264("intra-refresh=1:keyint=20:bframes=0"),
    "intra_refresh.mkv": x264("intra-refresh=1:keyint=20:bframes=2"),
    "slices.mp4": x264("slices=4:keyint=30"),
    "small_slices.mp4": x264("slice-max-size=200:keyint=30"),
    "cavlc.mp4": x264("cabac=0:keyint=30:bframes=3"),
    "bluray.mp4": x264("bluray-compat=1:open-gop=1:keyint=24:bframes=3"),
    "broadcast.mp4": x264("nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500:keyint=30:aud=1"),
    "ten_bits.mp4": dict(pix_fmt="yuv420p10le"),
    "full_colour.mp4": dict(pix_fmt="yuv444p"),
    "no_vui.mp4": dict(make=lambda path: without_vui(write(path, **x264("keyint=60:bframes=8:b-pyramid=normal")))),
    "late_b_frames.mp4": dict(
        make=lambda path: without_vui(
            write(
                path,
                count=120,
                types=[1] + [2] * 79 + [2 if i % 5 == 4 else 3 for i in range(40)],
                **x264("keyint=250:bframes=4:b-adapt=0:b-pyramid=normal:scenecut=0"),
            )
        )
    ),
    "faststart.mp4": dict(gop=12, container_options={"movflags": "faststart"}),
    "fragments.mp4": dict(gop=12, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "h264.mkv": dict(gop=12),
    "h264.mov": dict(gop=12),
    "h264.flv": dict(gop=12),
    "h264.avi": dict(gop=12),
    "raw.h264": dict(gop=12),
    "stream.ts": dict(gop=12),
    "open_gop.ts": x264("keyint=12:open-gop=1:bframes=3"),
    "vfr.mp4": dict(pts=VFR),
    "vfr.mkv": dict(pts=VFR),
    "audio.mp4": dict(audio=True, gop=12),
    "one_frame.mp4": dict(count=1),
    # Others
    "hevc.mp4": x265("open-gop=0"),
    "hevc_open_gop.mp4": x265("open-gop=1"),
    "hevc_open_gop.mkv": x265("open-gop=1"),
    "hevc_open_gop.ts": x265("open-gop=1"),
    "hevc_ten_bits.mp4": x265("open-gop=1", pix_fmt="yuv420p10le"),
    "vp9.webm": dict(codec="libvpx-vp9", gop=12),
    "vp9.mp4": dict(codec="libvpx-vp9", gop=12),
    "vp8.webm": dict(codec="libvpx", gop=12),
    "av1.mp4": dict(codec="libsvtav1", gop=12),
    "av1.webm": dict(codec="libsvtav1", gop=12),
    "xvid.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "packed.avi": dict(make=write_packed),
    "mpeg4.mp4": dict(codec="mpeg4", gop=12, options={"bf": "2"}),
    "mpeg4.mkv": dict(codec="mpeg4", gop=12, options={"bf": "2"}),
    "msmpeg4.avi": dict(codec="msmpeg4", gop=12),
    "windows.asf": dict(codec="wmv2", gop=12),
    "program.mpg": dict(codec="mpeg2video", gop=12, options={"bf": "2"}),
    "mpeg2.mkv": dict(codec="mpeg2video", gop=12, options={"bf": "2"}),
    "mpeg2.ts": dict(codec="mpeg2video", gop=12, options={"bf": "2"}),
    "motion.mjpeg": dict(codec="mjpeg", pix_fmt="yuvj420p"),  # pictures one after another, in which no seek is possible
    "motion_jpeg.avi": dict(codec="mjpeg", pix_fmt="yuvj420p"),
    "lossless.mkv": dict(codec="ffv1"),
}


@pytest.fixture(scope="session", params=FILES)
def path(request, tmp_path_factory):
    settings = dict(FILES[request.param])
    make = settings.pop("make", write)
    return make(tmp_path_factory.mktemp("decode") / request.param, **settings)


def test_every_frame_equals_sequential_decoding(path, monkeypatch):
    monkeypatch.setattr(Video, "_from_start", None)  # the slow fallback, which must not be needed
    expected = decode_planes(path)
    video = Video(path)
    assert len(video.times) == len(expected)
    assert [read_number(frame) for frame in decode_all(path)] == list(range(len(expected)))
    np.testing.assert_array_equal(pictures(video, range(len(expected))), expected)
    for index, frame in enumerate(expected):
        np.testing.assert_array_equal(pictures(video, [index])[0], frame)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program to compare with")
def test_every_frame_equals_that_of_the_ffmpeg_program(path, record_property):
    run = [shutil.which("ffmpeg"), "-v", "error", "-threads", "1"]
    version = subprocess.run([run[0], "-version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    record_property("ffmpeg", version)
    print(version)
    raw = subprocess.run(
        [*run, "-noautorotate", "-i", path, "-f", "rawvideo", "-fps_mode", "passthrough", "-"],
        capture_output=True,
        check=True,
    ).stdout
    frames = pictures(video := Video(path), range(len(video.times)))
    np.testing.assert_array_equal(frames, np.frombuffer(raw, np.uint8).reshape(len(frames), -1))


def test_pictures_that_are_not_needed_are_not_decoded(tmp_path, monkeypatch):
    decoded = []
    collect = decode._collect
    monkeypatch.setattr(
        decode,
        "_collect",
        lambda frames, wanted: collect((decoded.append(frame[0]) or frame for frame in frames), wanted),
    )
    path = write(tmp_path / "video.mp4", **x264("keyint=60:bframes=3:b-adapt=0:b-pyramid=none"))
    assert read_number(Video(path).frames([57])[0]) == 57
    assert len(decoded) < 25  # 15 P-frames and a few more


def test_any_frames_in_any_order(path):
    expected = decode_all(path)
    video = Video(path)
    rng = np.random.default_rng(0)
    for size in (2, 3, 8, 16):  # unsorted, with repeats
        indices = rng.integers(0, len(expected), size)
        frames = video.frames(indices)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, expected[indices])


def test_bytes_equal_file(path):
    with open(path, "rb") as file:
        video = Video(file.read())
    indices = [len(video.times) - 1, 0]
    np.testing.assert_array_equal(video.times, Video(path).times)
    np.testing.assert_array_equal(video.frames(indices), Video(path).frames(indices))


def test_times_and_duration(path):
    video = Video(path)
    expected = np.array(VFR) / 1000 if "vfr" in path else np.arange(len(video.times)) / 25
    np.testing.assert_allclose(video.times, expected, atol=2e-3)
    assert video.duration == pytest.approx(expected[-1] + 0.04, abs=0.06)
    assert video.duration > video.times[-1]


@pytest.mark.quick
@pytest.mark.parametrize("timestamps", [None, [None, 1, 2], [0, None, 2], [0, 2, 1]])
def test_without_ascending_timestamps_the_frame_rate_is_constant(tmp_path, monkeypatch, timestamps):
    """A raw stream stores no timestamps, not even for a single frame."""
    path = write(tmp_path / "raw.h264", count=1 if timestamps is None else 3)
    if timestamps:
        monkeypatch.setattr(Video, "_decode_timestamps", lambda self: [(pts, 1) for pts in timestamps])
    video, count = Video(path), len(timestamps or [None])
    np.testing.assert_allclose(video.times, np.arange(count) / 25)
    assert video.duration == pytest.approx(count / 25)
    assert read_number(video.frames([count - 1])[0]) == count - 1


def test_strict_decoding_accepts_undamaged_files(path):
    if "packed" in path:
        pytest.skip("packed B-frames are against the standard")
    video = Video(path, strict=True)
    indices = [len(video.times) - 1, len(video.times) // 2]
    np.testing.assert_array_equal(video.frames(indices), Video(path).frames(indices))


def test_edit_list(tmp_path):
    """A cut without re-encoding: the packets from the keyframe to the cut are there, but not shown."""
    source, cut = write(tmp_path / "whole.mp4"), str(tmp_path / "cut.mp4")
    with av.open(source) as reader, av.open(cut, "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        offset = int(7 / 25 / stream.time_base)
        for packet in reader.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
                writer.mux(packet)
    expected = decode_all(cut)
    assert read_number(expected[0]) == 7
    video = Video(cut)
    assert len(video.times) == len(expected) == 53
    np.testing.assert_array_equal(video.frames(range(53)), expected)
    np.testing.assert_array_equal(video.frames([30])[0], expected[30])


def test_the_rotation_that_a_phone_writes(tmp_path):
    """The matrix that a phone held upright writes (ISO 14496-12, tkhd): x' = height - y, y' = x."""
    path = write(tmp_path / "plain.mp4", count=3)
    data = bytearray(open(path, "rb").read())
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", data, start) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, start, 0, 65536, 0, -65536, 0, 0, HEIGHT << 16, 0, 1 << 30)
    rotated = Video(bytes(data)).frames([0, 1, 2])
    for before, after in zip(decode_all(path), rotated, strict=True):
        assert after.shape == (WIDTH, HEIGHT, 3)
        np.testing.assert_array_equal(after, before.transpose(1, 0, 2)[:, ::-1])  # a quarter turn clockwise


@pytest.mark.parametrize("degrees", [-90, 90, 180])
def test_rotation(tmp_path, degrees):
    path = write(tmp_path / "rotated.mp4", count=3, rotation=degrees)
    expected = np.rot90(decode_all(path), degrees // 90, axes=(1, 2))
    np.testing.assert_array_equal(Video(path).frames([2, 0]), expected[[2, 0]])


def test_a_seek_that_lands_too_late_is_corrected(tmp_path, monkeypatch):
    video = Video(write(tmp_path / "video.mp4", gop=12))
    monkeypatch.setattr(Video, "_seek", lambda self, container, stream, *_: container.seek(10**6, stream=stream))
    assert [read_number(frame) for frame in video.frames([40, 3])] == [40, 3]


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.flv", "video.mov"])
def test_a_seek_leads_to_the_group_of_the_frame(tmp_path, name):
    video = Video(write(tmp_path / name, gop=12))
    groups = np.searchsorted([pts for pts, _ in video._keyframes], video._pts, side="right")
    for index in (59, 30, 13):
        before = video.decoded
        assert read_number(video.frames([index])[0]) == index
        assert video.decoded - before <= np.sum(groups == groups[index])


def test_a_seek_by_pts_that_lands_too_late_is_done_by_dts(tmp_path):
    """As in a container that indexes by dts, with groups shorter than the number of frames a decoder looks ahead."""
    video = Video(write(tmp_path / "video.flv", gop=12))
    container, stream = video._open()
    with container:
        video._deadline = float("inf")
        video._seek(container, stream, 90, 560)  # the dts of the second keyframe lies between
        assert next(container.demux(stream)).pts <= 90


@pytest.mark.parametrize(
    "keys, damaged, wanted, expected",
    [
        ([4, 2, 1, 3, 5], [], [2, 3, 4], [2, 3, 4]),  # out of order
        ([4, 2, 3, 5], [], [1, 4], []),  # one is missing
        ([0, 1, 2, 3], [1], [0, 2, 3], [0]),  # 2 and 3 are made from 1
        ([0, 1, 2, 10, 11], [1], [10, 11], [10, 11]),  # 10 is a keyframe
        ([0, *range(2, 40), 1], [], [0, 1], [0]),  # too late for any order
    ],
)
def test_frames_are_collected_in_order_up_to_a_missing_or_damaged_one(keys, damaged, wanted, expected):
    frames = [(key, SimpleNamespace(key=key, key_frame=key % 10 == 0, is_corrupt=key in damaged)) for key in keys]
    assert [frame.key for frame in decode._collect(iter(frames), wanted)] == expected


@pytest.mark.quick
def test_cover_art_is_not_a_video(tmp_path):
    path = str(tmp_path / "song.mp4")
    with av.open(path, "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(cover.encode())
        container.mux(sound.encode(silence(1024)))
        container.mux(sound.encode())
    with pytest.raises(DecodeError, match="no video"):
        Video(path)


@pytest.mark.quick
def test_indices_out_of_range(tmp_path):
    video = Video(write(tmp_path / "video.mp4", count=3))
    for indices in ([3], [-1], []):
        with pytest.raises(IndexError):
            video.frames(indices)


@pytest.mark.quick
def test_info(tmp_path):
    plain = Video(write(tmp_path / "plain.webm", codec="libsvtav1", count=3)).info()
    assert plain == Info("av1", WIDTH, HEIGHT, 0, False)
    turned = Video(write(tmp_path / "turned.mp4", count=3, rotation=90, audio=True)).info()
    assert turned == Info("h264", WIDTH, HEIGHT, 90, True)


@pytest.mark.parametrize(
    "codec, pix_fmt, name",
    [("libx264", "yuv444p", "odd.mp4"), ("libvpx-vp9", "yuv420p", "odd.webm"), ("mpeg4", "yuv420p", "odd.avi")],
)
def test_odd_sizes(tmp_path, codec, pix_fmt, name):
    path = write(tmp_path / name, codec=codec, count=5, pix_fmt=pix_fmt, size=(61, 83))
    frames = Video(path).frames([4, 1])
    assert frames.shape == (2, 61, 83, 3)
    whole = np.pad(frames, ((0, 0), (0, 3), (0, WIDTH - 83), (0, 0)), mode="edge")
    assert [read_number(frame) for frame in whole] == [4, 1]


def test_a_video_with_fewer_frames_than_requested(tmp_path):
    video = Video(write(tmp_path / "short.mp4", count=3))
    indices = Uniform(8).test(video.times, video.duration, clips=2)
    frames = video.frames(indices.ravel())
    assert [read_number(frame) for frame in frames] == indices.ravel().tolist()
    assert set(indices.ravel()) == {0, 1, 2}


class _Malloc(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def test_decoding_leaks_no_memory(tmp_path):
    malloc = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if malloc is None:
        pytest.skip("this C library does not report the bytes in use")
    malloc.restype = _Malloc
    path = str(write(tmp_path / "clip.mp4", gop=12))

    def bytes_in_use(decodes):
        for _ in range(decodes):
            Video(path).frames([3, 17, 40])
        gc.collect()
        return malloc().uordblks

    before = bytes_in_use(50)
    assert bytes_in_use(100) - before < 100 * 50, "50 bytes per decode: any object of FFmpeg is larger"


def test_a_stream_has_the_frames_and_times_of_the_video(path):
    video = Video(path)
    expected = video.frames(range(len(video.times)))
    for start in (0.0, 0.6 * video.duration):
        stream = FrameStream(path)
        frames = list(stream.frames(lambda image: image, start))
        first = len(expected) - len(frames)
        assert first == np.searchsorted(video.times, start + 1e-6, side="right") - 1
        np.testing.assert_array_equal([frame.image for frame in frames], expected[first:])
        assert [frame.time for frame in frames] == pytest.approx(video.times[first:].tolist(), abs=1e-9)
        assert (stream.end, stream.problem) == (pytest.approx(video.duration), "")
        stream.close()
