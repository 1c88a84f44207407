"""Times that are repeated are mended, and no others."""

import av
import numpy as np
import pytest
from numbered import read_number, write

from input_pipeline import decode
from input_pipeline.decode import Video


@pytest.mark.quick
@pytest.mark.parametrize(
    "timestamps, times",
    [
        ([0, 1, 1, 3, 1000], [0, 1, 2, 3, 1000]),
        ([0, 1, 1, 1, 1000, 1001, 1002], [0, 1, 2, 3, 1000, 1001, 1002]),  # no further than usual
        ([0, 3, 6, 6, 6, 9, 12], [0, 3, 6, 7, 8, 9, 12]),  # at equal distances
        ([0, 1, 2, 2, 2], [0, 1, 2, 3, 4]),
        ([5, 5, 6, 7], [0, 0.5, 1, 2]),
        ([0, 3, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),  # of a picture that is reordered
        ([9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ([4, 4, 4], [0, 512, 1024]),  # none can be trusted: a constant rate
        ([0, 1, 2, 0, 1, 2], [0, 512, 1024, 1536, 2048, 2560]),
        ([0, 1, 2, 0, 1, 2, 3], [0, 512, 1024, 1536, 2048, 2560, 3072]),
    ],
)
def test_only_repeated_timestamps_are_mended(tmp_path, monkeypatch, timestamps, times):
    """Times are in units of 1/12800 s. Without times that can be trusted, the rate is the 25 frames of the file."""
    path = write(tmp_path / "raw.mp4", count=len(timestamps))
    monkeypatch.setattr(decode, "read_index", lambda *_: ([], []))
    monkeypatch.setattr(Video, "_decode_timestamps", lambda self: [(pts, 1) for pts in timestamps])
    video = Video(path)
    np.testing.assert_allclose(video.times * 12800, times)
    assert bool(video.remarks) == (times[-1] % 512 > 0)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_a_repeated_timestamp_changes_no_other(tmp_path, name):
    """A recording that was paused for 40 s, in which the third and the fourth frame have one timestamp."""
    pts = [40 * number + (40_000 if number > 5 else 0) for number in range(12)]
    source, path = write(tmp_path / "source.mkv", count=12, gop=4, options={"bf": "0"}, pts=pts), str(tmp_path / name)
    with av.open(source) as reader, av.open(path, "w") as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.pts += 40 * (packet.pts == 80)
                packet.stream = copy
                writer.mux(packet)
    video = Video(path)
    pts[2:4] = 120, 140
    np.testing.assert_allclose(video.times, np.array(pts) / 1000, atol=2e-3)
    assert video.duration == pytest.approx(40.48, abs=0.01)
    assert [read_number(frame) for frame in video.frames(range(12))] == list(range(12))
    assert video.remarks == ("1 of 12 frames have the time of another frame, and are shown between their neighbours.",)
