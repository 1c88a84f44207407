"""Video files whose frames show their own index in black and white blocks, so that a wrong frame is recognised."""

import fractions
import struct

import av
import numpy as np

HEIGHT, WIDTH, BITS = 64, 96, 8
VFR = np.cumsum([0] + [17, 33, 90, 40, 250, 21] * 10)[:60].tolist()  # milliseconds


def picture(number):
    """Returns a picture of a number in binary, as two rows of four blocks, with shading that exercises the codec."""
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


def write(
    path,
    codec="libx264",
    count=60,
    gop=30,
    options=None,
    pts=None,
    audio=False,
    rotation=None,
    pix_fmt="yuv420p",
    size=(HEIGHT, WIDTH),
    types=None,
    metadata=None,
    **kwargs,
):
    """Encodes `count` numbered frames at 25 frames per second, or at the given pts in milliseconds.

    `size` crops the frames. `types` gives the encoder the type of each picture, as an index of av's PictureType.
    """
    with av.open(str(path), "w", **kwargs) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, pix_fmt, gop
        stream.options = options or {}
        if pts:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for i in range(count):
            image = np.ascontiguousarray(picture(i)[: size[0], : size[1]])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts[i] if pts else i
            if types:
                frame.pict_type = types[i]
            container.mux(stream.encode(frame))
            if sound:
                tone = silence(640)
                tone.pts = 640 * i
                container.mux(sound.encode(tone))
        for track in filter(None, (stream, sound)):
            container.mux(track.encode())
    return str(path)


def write_packed(path, count=60):
    """Writes an AVI as DivX did: a B-frame shares a packet with the frame after it, and an empty packet follows."""
    source = str(path) + ".m4v"
    write(source, codec="mpeg4", count=count, options={"bf": "1", "b_strategy": "0"}, format="avi")
    with av.open(source) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    vop = b"\0\0\1\xb6"
    kind = [data[data.index(vop) + 4] >> 6 for data in pictures]  # 0: I, 1: P, 2: B
    packets = []
    for data, coded in zip(pictures, kind, strict=True):
        if coded == 2:
            packets[-1] += data
            packets.append(vop + b"\x51\0\0")
        else:
            start = data.index(vop)
            packets.append(data[:start] + b"\0\0\1\xb2DivX503b1393p" * (coded == 0) + data[start:])
    assert sum(data.count(vop) == 2 for data in packets) > count // 3
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, fractions.Fraction(1, 25)
            packet.is_keyframe = number == 0
            container.mux(packet)
    return str(path)


def with_matrix(path, a, b, c, d):
    """Replaces the display matrix of an MP4 file (ISO 14496-12, tkhd): (x, y) moves to (a x + c y, b x + d y)."""
    with open(path, "rb+") as file:
        data = bytearray(file.read())
        start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
        numbers = [round(number * 65536) for number in (a, b, 0, c, d, 0, 0, 0)]
        struct.pack_into(">9i", data, start, *numbers, 1 << 30)
        file.seek(0)
        file.write(data)
    return path


def without_vui(path):
    """Removes the VUI from an H.264 MP4, so that the file does not say how many frames the decoder must look ahead."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    start = data.index(b"avcC") + 12
    length = int.from_bytes(data[start - 2 : start], "big")
    bits = "".join(f"{byte:08b}" for byte in data[start : start + length].replace(b"\0\0\3", b"\0\0"))
    position = 0

    def fixed(count):
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    def golomb():
        zeros = bits.index("1", position) - position
        return fixed(zeros) + fixed(zeros + 1) - 1 if zeros else fixed(1) - 1

    # The fields of 7.3.2.1.1 of the standard, for 4:2:0 without scaling lists and pictures ordered by type 0 or 2.
    _, profile, _, _ = fixed(8), fixed(8), fixed(16), golomb()
    if profile >= 100:
        _, _, _, _, scaling = golomb(), golomb(), golomb(), fixed(1), fixed(1)
        assert not scaling
    golomb()
    if (order := golomb()) == 0:
        golomb()
    assert order != 1
    _, _, _, _, progressive = golomb(), fixed(1), golomb(), golomb(), fixed(1)
    fixed(1 if progressive else 2)
    if fixed(1):
        [golomb() for _ in range(4)]
    assert fixed(1) == 1, "there is no VUI"
    bits = bits[: position - 1] + "01"
    bits += "0" * (-len(bits) % 8)
    short = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    assert b"\0\0" not in short and len(short) <= length
    data[start : start + length] = short.ljust(length, b"\0")
    with open(path, "wb") as file:
        file.write(data)
    return path


def decode_all(path, format="rgb24"):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format=format) for frame in container.decode(video=0)])


def planes(frames):
    """Returns frames as decoded, before any conversion of colour: (n, bytes) uint8."""
    return np.stack([np.frombuffer(frame.to_ndarray().tobytes(), np.uint8) for frame in frames])


def decode_planes(path):
    with av.open(path) as container:
        return planes(container.decode(video=0))


def pictures(video, indices):
    with video._working():
        return planes(video._av_frames(indices))
