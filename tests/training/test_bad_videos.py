"""Videos that cannot be decoded count once in each pass over the data, whatever the batch size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline import DataError
from vidformers.training import bad_videos
from vidformers.training.bad_videos import BadVideos


def make(videos, batch_size, fraction, repeats=1, count=0):
    records = [SimpleNamespace(path=f"{number}.mp4") for number in range(videos)]
    setup = SimpleNamespace(
        pipeline=SimpleNamespace(
            train_manifest=SimpleNamespace(records=records),
            max_bad_fraction=fraction,
            repeats=repeats,
            num_classes=1,
            balance=0.0,
        ),
        train_config=SimpleNamespace(batch_size=batch_size),
    )
    return BadVideos(setup, {}, count)


def batches(videos, batch_size, bad, steps, repeats=1):
    """Yields (step, batch) of shuffled passes in which the videos of `bad` cannot be decoded."""
    rng, order = np.random.default_rng(0), []
    while len(order) < steps * batch_size // repeats:
        order += list(rng.permutation(videos))
    rows = np.repeat(order, repeats)[: steps * batch_size].reshape(steps, batch_size)
    for step, ids in enumerate(rows, start=1):
        texts = {"error": np.array([b"broken"] * batch_size), "remark": np.array([b""] * batch_size)}
        yield step, {"id": ids, "mask": np.float32(~np.isin(ids, bad)), **texts}


def train(counter, stream):
    """Returns the count after each step; metrics arrive a step late, as in a run."""
    counts, pending = [], None
    for step, batch in [*stream, (None, None)]:
        if batch is not None:
            counter.log_local(step, batch)
        if pending is not None:
            counter.count_global(*pending)
            counts.append(counter.count_in_pass)
        pending = None if batch is None else (step, {"count": batch["mask"].sum()})
    return counts


@pytest.mark.quick
@pytest.mark.parametrize("batch_size", [1, 3, 5, 8, 16])
def test_one_bad_video_of_five_is_one_of_five(batch_size, capsys):
    counts = train(make(5, batch_size, 0.2), batches(5, batch_size, [3], steps=40))
    assert max(counts) == 1
    assert capsys.readouterr().out.count("Skipped 3.mp4") == 1


@pytest.mark.quick
@pytest.mark.parametrize("batch_size, repeats", [(4, 1), (8, 2), (20, 1)])
def test_two_bad_videos_end_a_run_that_allows_one(batch_size, repeats):
    stream = list(batches(10, batch_size, [3, 7], 30, repeats))
    with pytest.raises(DataError, match=r"^2 of 10 videos .*data\.max_bad_fraction=0\.1 "):
        train(make(10, batch_size, 0.1, repeats), stream)
    assert set(train(make(10, batch_size, 0.2, repeats), stream)) <= {0, 1, 2}


@pytest.mark.quick
def test_the_first_bad_video_of_a_small_data_set_is_tolerated_with_one_warning(capsys):
    train(make(10, 4, 0.01), batches(10, 4, [3], steps=20))
    assert capsys.readouterr().out.count("The run goes on") == 1
    with pytest.raises(DataError, match="^1 of 10 videos"):
        train(make(10, 4, 0.0), batches(10, 4, [3], steps=20))


@pytest.mark.quick
def test_a_count_continues_within_its_pass():
    stream = list(batches(10, 4, [3, 7], 30))
    whole = make(10, 4, 0.2)
    counts = train(whole, stream)
    for stop in range(1, 30):
        assert train(make(10, 4, 0.2, count=counts[stop - 1]), stream[stop:]) == counts[stop:]


@pytest.mark.quick
def test_processes_add_their_counts_where_a_step_has_two_passes(monkeypatch):
    """Two processes with four rows each: the second has the end of the first pass and the start of the second."""
    sent = []
    monkeypatch.setattr(bad_videos, "allgather_strings", lambda text: [*sent, text])
    masks = [np.float32([1, 0, 1, 1]), np.float32([0, 1, 0, 1])]  # positions 1, 4 and 6 of the step
    for index, mask in enumerate(masks):
        monkeypatch.setattr(bad_videos.jax, "process_index", lambda index=index: index)
        counter = make(6, 8, 1.0)
        empty = np.array([b""] * 4)
        counter.log_local(1, {"id": np.arange(4), "mask": mask, "error": empty, "remark": empty})
        sent.append(json.dumps(list(counter._passes[1].items())))
    sent.pop()  # that of the process itself
    counter.count_global(1, {"count": 5.0})
    assert counter.count_in_pass == 1  # position 6 is the first of the second pass
