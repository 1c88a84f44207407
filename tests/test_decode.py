"""Decoded frames are exactly those asked for, whatever the container, codec and grouping of pictures.

Every test video shows its frame numbers in black and white blocks, so that a frame one off is seen.
"""

import fractions
import struct

import av
import numpy as np
import pytest

from input_pipeline.decode import Video
from input_pipeline.errors import DecodeError

HEIGHT, WIDTH, BITS = 64, 96, 8


def picture(number):
    """Number in binary, as two rows of four blocks, with shading that codecs have something to do about."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8).reshape(2, 4)
    shade = np.linspace(20, 60, WIDTH, dtype=np.uint8) + np.uint8(number % 5)
    return np.repeat((bits.repeat(HEIGHT // 2, 0).repeat(WIDTH // 4, 1) * 150 + shade)[..., None], 3, 2)


def read_number(frame):
    blocks = frame.astype(float).mean(-1).reshape(2, HEIGHT // 2, 4, WIDTH // 4).mean((1, 3))
    return sum(1 << bit for bit, level in enumerate(blocks.ravel()) if level > 110)


def silence(samples):
    tone = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    tone.sample_rate = 16000
    return tone


def write(path, codec="libx264", count=60, gop=30, options=None, pts=None, audio=False, rotation=None,
          **kwargs):
    """Encodes `count` numbered frames at 25 frames per second, or at the given pts in milliseconds."""
    with av.open(str(path), "w", **kwargs) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        stream.options = options or {}
        if pts:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts = pts[i] if pts else i
            container.mux(stream.encode(frame))
            if sound:
                tone = silence(640)
                tone.pts = 640 * i
                container.mux(sound.encode(tone))
        for track in filter(None, (stream, sound)):
            container.mux(track.encode())
    return str(path)


def decode_all(path):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


VFR = np.cumsum([0] + [17, 33, 90, 40, 250, 21] * 10)[:60].tolist()
FILES = {
    "long_gop.mp4": {},  # x264's default: B-frames, some of them references
    "open_gop.mp4": dict(options={"x264-params": "keyint=12:open-gop=1:bframes=3"}),
    "short_gop.mp4": dict(gop=3, options={"bf": "2"}),
    "intra.mp4": dict(gop=1),
    "low_delay.mp4": dict(options={"tune": "zerolatency"}),
    "h264.mkv": dict(gop=12),
    "hevc_open_gop.mp4": dict(codec="libx265",
                              options={"x265-params": "log-level=none:keyint=12:open-gop=1"}),
    "vp9.webm": dict(codec="libvpx-vp9", gop=12),
    "vp8.webm": dict(codec="libvpx", gop=12),
    "vfr.mp4": dict(pts=VFR),
    "vfr.mkv": dict(pts=VFR),
    "audio.mp4": dict(audio=True, gop=12),
    "one_frame.mp4": dict(count=1),
    "xvid.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "stream.ts": dict(gop=12),
    "program.mpg": dict(codec="mpeg2video", gop=12, options={"bf": "2"}),
    "raw.h264": dict(gop=12),
}


@pytest.fixture(scope="session", params=FILES)
def path(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("decode") / request.param, **FILES[request.param])


def test_every_frame_equals_sequential_decoding(path):
    expected = decode_all(path)
    video = Video(path)
    assert len(video.times) == len(expected)
    assert [read_number(frame) for frame in expected] == list(range(len(expected)))
    np.testing.assert_array_equal(video.frames(range(len(expected))), expected)
    for index, frame in enumerate(expected):
        np.testing.assert_array_equal(video.frames([index])[0], frame)


def test_any_choice_of_frames(path):
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


def test_rotation_of_a_phone(tmp_path):
    """The matrix that a phone held upright writes (ISO 14496-12, tkhd): x' = height - y, y' = x."""
    path = write(tmp_path / "plain.mp4", count=3)
    data = bytearray(open(path, "rb").read())
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", data, start) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, start, 0, 65536, 0, -65536, 0, 0, HEIGHT << 16, 0, 1 << 30)
    rotated = Video(bytes(data)).frames([0, 1, 2])
    for before, after in zip(decode_all(path), rotated):
        assert after.shape == (WIDTH, HEIGHT, 3)
        np.testing.assert_array_equal(after, before.transpose(1, 0, 2)[:, ::-1])  # a quarter turn clockwise


@pytest.mark.parametrize("degrees", [-90, 90, 180])
def test_rotation(tmp_path, degrees):
    path = write(tmp_path / "rotated.mp4", count=3, rotation=degrees)
    expected = np.rot90(decode_all(path), degrees // 90, axes=(1, 2))
    np.testing.assert_array_equal(Video(path).frames([2, 0]), expected[[2, 0]])


def test_a_seek_that_lands_too_late_is_made_good(tmp_path):
    video = Video(write(tmp_path / "video.mp4", gop=12))
    video._keyframes = [(pts, pts + 10 ** 6) for pts, _ in video._keyframes]
    assert [read_number(frame) for frame in video.frames([40, 3])] == [40, 3]


def test_cover_art_is_no_video(tmp_path):
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


def audio_only(path):
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        container.mux(sound.encode(silence(1024)))
        container.mux(sound.encode())


def truncated(path, **kwargs):
    data = open(write(path, **kwargs), "rb").read()
    path.write_bytes(data[:len(data) * 6 // 10])


@pytest.mark.parametrize("break_file", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("not a video\n" * 100),
    lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    lambda path: truncated(path),  # without its index, at the end
    lambda path: truncated(path, container_options={"movflags": "faststart"}),  # with it, at the start
    audio_only,
    lambda path: None,  # no file
], ids=["empty", "text", "noise", "truncated", "truncated_faststart", "audio_only", "missing"])
def test_broken_files_are_decode_errors(tmp_path, break_file):
    path = tmp_path / "broken.mp4"
    break_file(path)
    with pytest.raises(DecodeError, match="broken.mp4"):
        video = Video(str(path))
        video.frames(range(len(video.times)))


def test_damage_never_ends_an_epoch(tmp_path):
    """Whatever is decoded or not, only DecodeError comes out: StopIteration would end the data set."""
    data = open(write(tmp_path / "video.mp4", gop=12), "rb").read()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data)
        start = rng.integers(len(data))
        damaged[start:start + 400] = rng.bytes(len(damaged[start:start + 400]))
        try:
            video = Video(bytes(damaged))
            assert video.frames([0, len(video.times) - 1]).shape[0] == 2
        except DecodeError:
            pass


def test_indices_out_of_range(tmp_path):
    video = Video(write(tmp_path / "video.mp4", count=3))
    for indices in ([3], [-1], []):
        with pytest.raises(IndexError):
            video.frames(indices)
