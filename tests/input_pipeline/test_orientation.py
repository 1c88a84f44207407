"""Messages in a stream turn and mirror all frames that follow, as ffmpeg does, from wherever a video is read."""

import av
import numpy as np
import pytest
from numbered import decode_all, with_matrix, write

from input_pipeline.decode import Video
from input_pipeline.orientation import UPRIGHT, Messages

CODECS = {"libx264": ("x264-params", ""), "libx265": ("x265-params", ":log-level=none:open-gop=0")}
COUNT, GOP = 15, 5


def message(codec, degrees=90, flips="00", before=b""):
    """Returns an SEI unit with a display orientation message, which follows other messages in the unit.

    It is written as in H.264, D.1.27, and HEVC, D.2.17: cancel_flag, hor_flip, ver_flip, anticlockwise_rotation, and a
    period of 1 or a persistence flag. Flips come before the turn. `degrees` None cancels.
    """
    bits = "1" if degrees is None else f"0{flips}{degrees * 2**16 // 360 % 2**16:016b}"
    bits += "010" if codec == "libx264" else "1"
    payload = int(bits.ljust(24, "0"), 2).to_bytes(3)
    return (b"\x06" if codec == "libx264" else b"\x4e\x01") + before + bytes([47, 3]) + payload + b"\x80"


def write_with(path, messages, codec="libx264", pts=None):
    """Writes a video in groups of 5 pictures with B-frames. `messages` maps numbers of packets to SEI units."""
    options, more = CODECS[codec]
    options = {options: f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=2{more}"}
    source = write(path.with_suffix(".source.mp4"), codec=codec, count=COUNT, options=options, pts=pts)
    with av.open(source) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in reader.demux(stream) if packet.size):
            if unit := messages.get(number):
                changed = av.Packet(len(unit).to_bytes(4) + unit + bytes(packet))
                for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
                    setattr(changed, name, getattr(packet, name))
                packet = changed
            packet.stream = copy
            writer.mux(packet)
    return str(path), decode_all(source)


def check_read(path, expected):
    """Compares all frames, and each frame that is read alone, which seeks."""
    frames = Video(path).frames(range(COUNT))
    np.testing.assert_array_equal(frames, expected)
    for index in (1, 7, 9, 10, 14):
        np.testing.assert_array_equal(Video(path).frames([index])[0], expected[index])


def keyframes(unit):
    return {number: unit for number in range(0, COUNT, GOP)}


@pytest.mark.quick
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "raw"])
@pytest.mark.parametrize("on", ["keyframes", "first"])
def test_a_message_turns_the_frames_that_follow(tmp_path, codec, suffix, on):
    suffix = suffix if suffix != "raw" else {"libx264": "h264", "libx265": "hevc"}[codec]
    messages = keyframes(message(codec)) if on == "keyframes" else {0: message(codec)}
    path, shown = write_with(tmp_path / f"video.{suffix}", messages, codec)
    check_read(path, np.rot90(shown, axes=(1, 2)))
    assert Video(path).info().rotation == 90


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flips", ["00", "01", "10", "11"])
def test_flips_and_turns_are_those_of_ffmpeg(tmp_path, degrees, flips):
    """FFmpeg gives the frames that come with a message a display matrix; the others are read from the message alone."""
    path, shown = write_with(tmp_path / "video.mp4", {2: message("libx264", degrees, flips), 0: None})
    with av.open(path) as container:
        pts = [frame.pts for frame in container.decode(video=0)]
        container.seek(0)
        with_message = pts.index([packet.pts for packet in container.demux(video=0)][2])
    expected = shown[:, :, ::-1] if flips[0] == "1" else shown
    expected = expected[:, ::-1] if flips[1] == "1" else expected
    expected = np.rot90(expected, degrees // 90, axes=(1, 2))
    video = Video(path)
    np.testing.assert_array_equal(video.frames([with_message])[0], expected[with_message])
    np.testing.assert_array_equal(video.frames([with_message + 1])[0], expected[with_message + 1])


@pytest.mark.quick
def test_a_later_message_replaces_an_earlier_one(tmp_path):
    path, shown = write_with(tmp_path / "video.mp4", {0: message("libx264", 90), GOP: message("libx264", -90)})
    check_read(path, [np.rot90(frame, 1 if number < GOP else -1) for number, frame in enumerate(shown)])


@pytest.mark.quick
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("degrees", [0, None])
def test_a_message_that_turns_nothing_has_no_effect(tmp_path, codec, degrees):
    """As in ffmpeg, which goes on with the last display matrix."""
    path, shown = write_with(tmp_path / "video.mp4", {0: message(codec), GOP: message(codec, degrees)}, codec)
    check_read(path, np.rot90(shown, axes=(1, 2)))


@pytest.mark.quick
def test_a_message_behind_others_is_found(tmp_path):
    """Sizes of 255 bytes and more, and bytes that are escaped because they look like the start of a unit."""
    zeros = b"\0\0\3" * 128 + b"\0\0\3\1"  # user data, of which each third byte is an escape
    before = bytes([5, 255, 4]) + zeros
    assert len(zeros.replace(b"\0\0\3", b"\0\0")) == 259
    path, shown = write_with(tmp_path / "video.mp4", keyframes(message("libx264", before=before)))
    check_read(path, np.rot90(shown, axes=(1, 2)))


@pytest.mark.quick
def test_the_matrix_of_the_container_comes_first(tmp_path):
    path, shown = write_with(tmp_path / "video.mp4", {0: message("libx264"), 7: message("libx264")})
    check_read(with_matrix(path, -1, 0, 0, -1), np.rot90(shown, 2, axes=(1, 2)))


@pytest.mark.quick
@pytest.mark.parametrize("data", [b"", b"\0\0\0\5\6", b"\0\0\0\3\6\x2f\xff", b"\0\0\0\1\6", b"\xff" * 40, b"\0\0\0\0"])
def test_packets_that_are_cut_off_have_no_message(data):
    for extradata in (None, b"", b"\1\0\0\0\xff"):
        messages = Messages("h264", extradata)
        messages.read(av.Packet(data) if data else av.Packet(1))
        assert messages.at(3) == UPRIGHT
