"""Remarks on how videos are read: each video once, and no more than five of a kind."""

import numpy as np
import pytest

from input_pipeline.annotations import Record
from vidformers.training.remarks import VideoRemarks


@pytest.mark.quick
def test_each_video_is_named_once_and_five_of_a_kind(capsys):
    remarks = VideoRemarks(tuple(Record(id, f"{id}.mp4", 0, id) for id in range(9)))
    texts = ["", "HDR.", *(f"{count} frames fill 99%." for count in range(7))]
    batch = {"id": np.arange(9), "remark": np.array([text.encode() for text in texts])}
    for _ in range(2):
        assert remarks.log_local(batch) is batch
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [f"{id}.mp4: {texts[id]}" for id in range(1, 7)]
    assert "python -m input_pipeline.check" in printed[-1]
