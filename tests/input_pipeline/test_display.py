"""Frames are those that a player shows: upright, with square pixels, in one size, in the colours of the file."""

import fractions
import io
import os
import struct
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange
from numbered import HEIGHT, WIDTH, decode_all, picture, read_number, with_matrix, write

from input_pipeline import check, containers, decode, display, transcode, videos
from input_pipeline.annotations import Record
from input_pipeline.decode import Video
from input_pipeline.errors import DecodeError
from input_pipeline.mp4_index import claimed_bytes
from input_pipeline.orientation import Messages
from input_pipeline.transcode import Encoding
from input_pipeline.videos import CompressedFrames, FrameFolder, open_video


def moved(image, a, b, c, d):
    """Returns an image whose pixels are moved one by one."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    result = np.empty((down.max() + 1, across.max() + 1, 3), np.uint8)
    result[down, across] = image
    return result


@pytest.mark.quick
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("is_diagonal", [True, False])
def test_turns_and_mirrors(tmp_path, signs, is_diagonal):
    matrix = (signs[0], 0, 0, signs[1]) if is_diagonal else (0, signs[0], signs[1], 0)
    path = with_matrix(write(tmp_path / "video.mp4", count=2), *matrix)
    (expected, _) = [moved(frame, *matrix) for frame in decode_all(path)]
    video = Video(path)
    np.testing.assert_array_equal(video.frames([0])[0], expected)
    np.testing.assert_array_equal(next(video.each([0])), expected)
    info = video.info()
    described = np.rot90(decode_all(path)[0], info.rotation // 90)
    np.testing.assert_array_equal(described[:, ::-1] if info.mirrored else described, expected)
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    facts, data = transcode.transcode(video, Encoding(crf=0))
    assert (facts["height"], facts["width"]) == expected.shape[:2]
    assert np.abs(Video(data).frames([0])[0].astype(int) - expected).mean() < 2


@pytest.mark.quick
@pytest.mark.parametrize(
    "matrix, like",
    [
        ((0, 0, 0, 0), (1, 0, 0, 1)),  # all points are moved to one
        ((1, 0, 1, 0), (1, 0, 0, 1)),  # or onto a line
        ((-1, -1, -1, -1), (1, 0, 0, 1)),
        ((0.5, 0, 0, -0.5), (1, 0, 0, -1)),
        ((0.1, 0.995, -0.995, 0.1), (0, 1, -1, 0)),  # almost a quarter turn
        ((-0.98, 0.2, 0.2, 0.98), (-1, 0, 0, 1)),  # almost a mirror
    ],
)
def test_other_matrices_count_as_the_nearest_or_as_none(tmp_path, matrix, like):
    path = with_matrix(write(tmp_path / "video.mp4", count=1), *matrix)
    np.testing.assert_array_equal(Video(path).frames([0])[0], moved(decode_all(path)[0], *like))


@pytest.mark.quick
def test_the_best_video_stream_is_read(tmp_path):
    path = str(tmp_path / "video.mkv")
    with av.open(path, "w") as container:
        streams = []
        for is_default, height in ((False, HEIGHT // 2), (True, HEIGHT)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, WIDTH, "yuv420p"
            stream.disposition = av.stream.Disposition.default if is_default else 0
            streams.append(stream)
        for number in range(5):
            for stream in streams:
                image = np.ascontiguousarray(picture(number)[: stream.height])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    frames = Video(path).frames([4, 0])
    assert frames.shape == (2, HEIGHT, WIDTH, 3) and [read_number(frame) for frame in frames] == [4, 0]


def anamorphic(path, aspect, matrix=None, count=3):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(*aspect)
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    return with_matrix(str(path), *matrix) if matrix else str(path)


@pytest.mark.quick
@pytest.mark.parametrize(
    "aspect, matrix, shape",
    [
        ((2, 1), None, (HEIGHT, 2 * WIDTH)),
        ((1, 2), None, (2 * HEIGHT, WIDTH)),
        ((4, 3), None, (HEIGHT, WIDTH * 4 // 3)),
        ((4, 3), (0, 1, -1, 0), (WIDTH * 4 // 3, HEIGHT)),
        ((1, 1), None, (HEIGHT, WIDTH)),
        ((0, 1), None, (HEIGHT, WIDTH)),
        ((255, 1), None, (HEIGHT, WIDTH)),
        ((1, 30), None, (HEIGHT, WIDTH)),
    ],
)
def test_pixels_are_made_square(tmp_path, aspect, matrix, shape):
    path = anamorphic(tmp_path / "video.mp4", aspect, matrix)
    video = Video(path)
    frames = video.frames([2, 0])
    assert frames.shape[1:3] == shape
    np.testing.assert_array_equal(next(video.each([2])), frames[0])
    upright = frames[0] if matrix is None else np.rot90(frames[0])
    assert read_number(cv2.resize(upright, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)) == 2
    facts, data = transcode.transcode(video, Encoding(crf=0))
    assert (facts["height"], facts["width"]) == shape
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1)
    assert np.abs(Video(data).frames([2, 0]).astype(int) - frames).mean() < 2
    assert (video.info().height, video.info().width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "smpte2085", "chroma-derived-nc", "ICtCp"])
def test_colour_matrices_that_ffmpeg_does_not_convert(tmp_path, matrix):
    """They are read as if the file did not say; BT.2020 with constant luminance as BT.2020."""
    like = "bt2020nc" if matrix == "bt2020c" else "undef"
    frames = []
    for name in (matrix, like):
        path = coloured(tmp_path / f"{name}.mp4", f"colormatrix={name}")
        frames.append(Video(path).frames([0]))
    np.testing.assert_array_equal(*frames)


def coloured(path, params, full_range=False):
    """Writes one frame of a strong colour, Y = 120, Cb = 90, Cr = 180."""
    planes = np.concatenate([np.full(size, level, np.uint8) for size, level in ((6144, 120), (1536, 90), (1536, 180))])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0", "x264-params": params})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        frame = av.VideoFrame.from_ndarray(planes.reshape(HEIGHT * 3 // 2, WIDTH), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.quick
@pytest.mark.parametrize(
    "params, red, blue",
    [
        ("colormatrix=undef", 1.402, 1.772),  # ITU-R BT.601 where the file does not say
        ("colormatrix=bt709", 1.5748, 1.8556),
        ("colormatrix=bt2020nc", 1.4746, 1.8814),
    ],
)
def test_colours_and_their_range(tmp_path, params, red, blue):
    for full_range in (False, True):
        frame = Video(coloured(tmp_path / "video.mp4", params, full_range)).frames([0])[0, 32, 48]
        low, luma, chroma = (0, 1, 1) if full_range else (16, 255 / 219, 255 / 224)
        expected = [luma * (120 - low) + chroma * weight * excess for weight, excess in ((red, 52), (blue, -38))]
        np.testing.assert_allclose(frame[[0, 2]], expected, atol=2.1)


def two_sizes(path, sizes=((64, 96), (32, 48))):
    """Writes a motion JPEG whose frames change their size, after 2 frames. The container gives the first size."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *sizes[0], "yuvj420p"
        for number in range(6):
            size = sizes[number >= 2]
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuvj420p"
            encoder.time_base = fractions.Fraction(1, 25)
            image = cv2.resize(picture(number), size[::-1], interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream, packet.pts, packet.dts = stream, number, number
                packet.time_base = fractions.Fraction(1, 25)
                container.mux(packet)
    return str(path)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["video.mkv", "video.avi"])
@pytest.mark.parametrize("sizes", [((64, 96), (32, 48)), ((32, 48), (64, 96))])
def test_frames_of_another_size_are_scaled_to_the_first(tmp_path, name, sizes):
    path = two_sizes(tmp_path / name, sizes)
    whole = Video(path).frames(range(6))
    assert whole.shape[1:3] == sizes[0]
    for indices in ([5], [2, 3], [1, 4], [0]):
        np.testing.assert_array_equal(Video(path).frames(indices), whole[indices])
        np.testing.assert_array_equal(list(Video(path).each(indices)), whole[indices])
    upscaled = [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in whole]
    assert [read_number(frame) for frame in upscaled] == list(range(6))
    assert transcode.transcode(Video(path), Encoding())[0]["height"] == sizes[0][0]


@pytest.mark.quick
def test_frames_that_are_turned_otherwise_than_the_first_get_its_size():
    class Matrix(bytes):
        type = SimpleNamespace(name="DISPLAYMATRIX")

    def frame(number, *matrix):
        numbers = np.array([*matrix[:2], 0, *matrix[2:], 0, 0, 0, 1], np.int32)
        frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
        return SimpleNamespace(
            **{name: getattr(frame, name) for name in ("width", "height", "colorspace", "color_range", "pts")},
            reformat=lambda format, **options: (
                frame.reformat(format=format, **options)
                if format == "rgb24"
                else SimpleNamespace(side_data=[Matrix(numbers.tobytes())])
            ),
        )

    shown = display.Display("video", (WIDTH, HEIGHT), None, Messages("rawvideo", None))
    turned = shown.image(frame(5, 0, 1, -1, 0), None)
    np.testing.assert_array_equal(turned, np.rot90(picture(5), -1))
    upright = shown.image(frame(6, 1, 0, 0, 1), None)
    assert upright.shape == turned.shape == (WIDTH, HEIGHT, 3)
    assert read_number(cv2.resize(upright, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)) == 6


@pytest.mark.quick
def test_a_stream_whose_size_changes(tmp_path):
    parts = [open(write(tmp_path / f"{height}.ts", count=5, size=(height, 64)), "rb").read() for height in (64, 32)]
    video = Video(b"".join(parts))
    assert len(video.times) == 10 and video.frames(range(10)).shape == (10, 64, 64, 3)
    np.testing.assert_array_equal(video.frames([9]), video.frames([0, 9])[1:])


@pytest.mark.quick
def test_the_margins_that_a_stream_cuts_off_are_not_shown(tmp_path):
    source, cut = write(tmp_path / "source.mp4", count=3), str(tmp_path / "cut.mp4")
    with av.open(source) as reader, av.open(cut, "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        margins = BitStreamFilterContext(
            "h264_metadata=crop_left=8:crop_right=4:crop_top=6:crop_bottom=10", stream, copy
        )
        for packet in reader.demux(stream):
            for changed in margins.filter(packet if packet.size else None):
                changed.stream = copy
                writer.mux(changed)
    np.testing.assert_array_equal(
        Video(cut).frames([0, 2]), Video(source).frames([0, 2])[:, 6 : HEIGHT - 10, 8 : WIDTH - 4]
    )


@pytest.mark.quick
def test_pictures_of_another_size_are_scaled_to_the_first(tmp_path):
    for number in range(4):
        image = picture(number) if number < 2 else picture(number)[::2, ::2]
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), image)
    files = [(tmp_path / f"{number}.jpg").read_bytes() for number in range(4)]
    for make in (lambda: FrameFolder(str(tmp_path)), lambda: CompressedFrames(files, 30.0, "clip")):
        whole = make().frames(range(4))
        assert whole.shape[1:] == picture(0).shape and [read_number(frame) for frame in whole] == [0, 1, 2, 3]
        for indices in ([3], [2, 3], [1, 2]):
            np.testing.assert_array_equal(make().frames(indices), whole[indices])
            np.testing.assert_array_equal(list(make().each(indices)), whole[indices])


@pytest.mark.quick
def test_hidden_files_are_no_frames(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"img_{number + 1:04d}.jpg"), picture(number))
        (tmp_path / f"._img_{number + 1:04d}.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert [read_number(frame) for frame in FrameFolder(str(tmp_path)).frames(range(3))] == [0, 1, 2]


@pytest.mark.quick
def test_a_frame_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "0.jpg")
    with pytest.raises(DecodeError, match="0.jpg: not a complete JPEG file"):
        FrameFolder(str(tmp_path)).frames([0])


@pytest.mark.quick
def test_hdr_and_interlaced_videos_are_read_as_stored_and_named(tmp_path):
    kinds = {
        "transfer=smpte2084": ("The video is HDR (PQ) and is read without tone mapping.",),
        "transfer=arib-std-b67": ("The video is HDR (HLG) and is read without tone mapping.",),
        "tff=1": ("The video is interlaced and is read without deinterlacing.",),
        "keyint=12": (),
    }
    for params, remarks in kinds.items():
        path = write(tmp_path / "video.mp4", count=3, options={"x264-params": params})
        record = Record(0, path, 0, 1, name="video.mp4")
        assert Video(path).remarks == videos.remarks(open_video(record)) == remarks
        assert check._examine(record, lambda: None, 30.0)["remarks"] == " ".join(remarks)
        assert transcode.run(transcode.Task(record, Encoding()))[0].get("remarks", "") == " ".join(remarks)
        np.testing.assert_array_equal(Video(path).frames(range(3)), decode_all(path))


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, options",
    [
        ("video.mp4", {}),
        ("video.ts", {}),
        ("video.webm", dict(codec="libvpx-vp9")),
        ("video.mkv", dict(codec="mjpeg", pix_fmt="yuvj420p")),
        ("video.avi", dict(codec="mpeg4")),
    ],
)
def test_frames_that_are_too_large_are_refused(tmp_path, monkeypatch, name, options):
    limit = HEIGHT * WIDTH - 1
    monkeypatch.setattr(display, "MAX_PIXELS", limit)
    monkeypatch.setattr(containers, "CODEC_OPTIONS", {"max_pixels": str(limit)})
    with pytest.raises(DecodeError, match=f"{name}: .* more than .* million"):
        Video(write(tmp_path / name, count=20, **options)).frames([0])


@pytest.mark.quick
def test_a_frame_that_is_larger_than_the_container_says_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = two_sizes(tmp_path / "video.mkv", ((32, 48), (64, 96)))
    monkeypatch.setattr(containers, "CODEC_OPTIONS", {"max_pixels": str(HEIGHT * WIDTH - 1)})
    assert Video(path).frames([1]).shape == (1, 32, 48, 3)
    with pytest.raises(DecodeError, match="video.mkv: its frames are damaged or have more than 67 million pixels"):
        Video(path).frames([5])


@pytest.mark.quick
def test_pictures_that_are_too_large_are_refused(tmp_path):
    encoded, data = cv2.imencode(".jpg", picture(0))
    header = b"\x08" + struct.pack(">HH", HEIGHT, WIDTH) + b"\x03"  # of the frame: 8 bits, the size, 3 colours
    assert encoded and data.tobytes().count(header) == 1
    large = data.tobytes().replace(header, b"\x08" + struct.pack(">HH", 16384, 16384) + b"\x03")
    (tmp_path / "0.jpg").write_bytes(large)
    with pytest.raises(DecodeError, match="0.jpg: 16384 x 16384 pixels are more than the limit of 67 million"):
        FrameFolder(str(tmp_path)).frames([0])
    with pytest.raises(DecodeError, match="65536 x 4096 pixels"):  # after the pixels are made square
        shown = display.Display("film", (8192, 4096), 8, Messages("rawvideo", None))
        shown.image(SimpleNamespace(width=8192, height=4096, side_data=[]), None)


@pytest.mark.quick
def test_an_index_that_claims_more_than_the_file_holds_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """80 million frames of one byte, for which FFmpeg would take 5 GB."""
    path = write(tmp_path / "video.mp4", count=3, audio=True)
    data = bytearray(open(path, "rb").read())
    assert claimed_bytes(io.BytesIO(data), len(data)) == 0  # the sizes are in a table
    sizes = data.index(b"stsz")
    struct.pack_into(">II", data, sizes + 8, 1, 80_000_000)
    assert claimed_bytes(io.BytesIO(data), len(data)) == 80_000_000
    sound = data.replace(b"vide", b"soun")
    assert claimed_bytes(io.BytesIO(sound), len(sound)) == 80_000_000 // 64
    monkeypatch.setattr(av, "open", None)
    with pytest.raises(DecodeError, match="truncated"):
        Video(bytes(data))
    (tmp_path / "video.mp4").write_bytes(data)
    with pytest.raises(DecodeError, match="video.mp4: the file is truncated"):
        Video(path)


@pytest.mark.quick
def test_claims_of_damaged_files_are_bounded(tmp_path, monkeypatch):
    path = write(tmp_path / "video.mp4", count=5)
    monkeypatch.setattr(decode, "_MAX_FRAMES", 4)
    with pytest.raises(DecodeError, match="video.mp4: more than 4 frames"):
        Video(path)
    for times, duration in (([0.0, 1.0], 1e12), ([0.0, 1e-12], 2e-12)):
        with pytest.raises(DecodeError, match="seconds, but has 2 frames"):
            transcode.transcode(SimpleNamespace(times=np.array(times), duration=duration), Encoding())
