"""Margins that a container cuts off are not shown, as in ffmpeg."""

import struct

import av
import numpy as np
import pytest
from numbered import HEIGHT, WIDTH, decode_all, with_matrix, write

from input_pipeline.decode import Video
from input_pipeline.stream import FrameStream


def with_aperture(path, left, right, top, bottom):
    """Adds a clean aperture to an MP4 file (ISO 14496-12, clap): the size and the offset of its centre."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    size, offset = (WIDTH - left - right, 1, HEIGHT - top - bottom, 1), (left - right, 2, top - bottom, 2)
    box = struct.pack(">I4s8i", 40, b"clap", *size, *offset)
    start = data.index(b"avc1", data.index(b"stsd")) - 4
    end = start + int.from_bytes(data[start : start + 4])
    for parent in (start, *(data.index(kind) - 4 for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"))):
        data[parent : parent + 4] = (int.from_bytes(data[parent : parent + 4]) + len(box)).to_bytes(4)
    data[end:end] = box
    with open(path, "wb") as file:
        file.write(data)
    return path


def remuxed(source, path):
    """Copies a video into another container."""
    with av.open(source) as reader, av.open(str(path), "w") as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
    return str(path)


@pytest.mark.quick
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    "margins, shown",
    [
        ((12, 4, 6, 10), np.s_[6:54, 12:92]),
        ((46, 46, 0, 0), np.s_[:, 46:50]),
        ((0, 8, 0, 0), np.s_[:, :88]),
        ((1, 0, 0, 0), np.s_[:, :94]),  # of a sample of chroma there is no half: rounded as by ffmpeg
        ((48, 48, 0, 0), np.s_[:, :]),  # nothing would be left
    ],
)
def test_margins_are_cut_off(tmp_path, suffix, margins, shown):
    path = with_aperture(write(tmp_path / "video.mp4", count=8, gop=4), *margins)
    expected = [frame[shown] for frame in decode_all(path)]
    video = Video(path if suffix == "mp4" else remuxed(path, tmp_path / "video.mkv"))
    np.testing.assert_array_equal(video.frames(range(8)), expected)
    np.testing.assert_array_equal(video.frames([6])[0], expected[6])
    assert (video.info().height, video.info().width) == expected[0].shape[:2]
    for start in (0.0, 0.3):
        stream = FrameStream(path)
        images = [frame.image for frame in stream.frames(lambda image: image, start)]
        np.testing.assert_array_equal(images, expected[8 - len(images) :])
        stream.close()
    assert 0 < len(images) < 8


@pytest.mark.quick
def test_margins_are_those_of_the_frame_before_it_is_turned(tmp_path):
    path = with_matrix(with_aperture(write(tmp_path / "video.mp4", count=2), 12, 4, 6, 10), 0, 1, -1, 0)
    expected = [np.rot90(frame[6:54, 12:92], -1) for frame in decode_all(path)]
    np.testing.assert_array_equal(Video(path).frames([0, 1]), expected)
    assert av.logging.get_level() is None  # reading the margins changes no setting of PyAV
