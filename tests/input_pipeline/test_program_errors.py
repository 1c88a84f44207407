"""An error of the program ends the program. It is not counted as damage of the videos that were read at that time."""

import csv
from types import SimpleNamespace

import av
import pytest
from numbered import write

from input_pipeline import Pipeline, check, prepare
from input_pipeline.decode import Video

# Runs at the start of each process that decodes, since PYTHONPATH leads to it.
FAULT = """
import av

def open(*arguments, **options):
    raise TypeError("a fault of the program")

av.open = open
"""


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "video.mp4", count=4)
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text("path,label\nvideo.mp4,0\n")
    return tmp_path


@pytest.fixture
def fault(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("fault")
    (folder / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    namespace: dict = {}
    monkeypatch.setattr(av, "open", av.open)  # restored after the test
    exec(FAULT, namespace)


def flags(data, out):
    return ["--config=configs/vit_b16.py", f"--config.data.root={data}", "--config.data.num_classes=1", f"--out={out}"]


@pytest.mark.quick
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends(data, fault, workers):
    fields = dict(source="csv", root=str(data), num_classes=1, frames=2, size=16, short_side=(16, 20))
    pipeline = Pipeline(**fields, workers=workers)
    batches = pipeline.train_batches(batch_size=1, seed=0)
    with pytest.raises(TypeError, match="a fault of the program"):
        next(batches)
    batches.close()


@pytest.mark.quick
def test_a_check_ends_and_names_no_video(data, fault, tmp_path):
    with pytest.raises(TypeError, match="a fault of the program"):
        check.main(flags(data, tmp_path / "out"))
    with open(tmp_path / "out" / "report.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == []
    assert not (tmp_path / "out" / "exclude.txt").exists()


@pytest.mark.quick
def test_prepare_ends_and_leaves_out_no_video(data, fault, tmp_path):
    with pytest.raises(TypeError, match="a fault of the program"):
        prepare.main(flags(data, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.csv"))


@pytest.mark.quick
@pytest.mark.parametrize(
    "error", [TypeError, AttributeError, NameError, ImportError, AssertionError, ZeroDivisionError]
)
def test_only_a_decoder_and_the_system_say_that_a_file_is_damaged(data, monkeypatch, error):
    video = Video(str(data / "video.mp4"))

    def fail(*_):
        raise error

    monkeypatch.setattr(video, "_first_frame", fail)
    with pytest.raises(error):
        video.info()


@pytest.mark.quick
def test_a_stream_that_appears_while_reading_is_no_damage(data):
    """PyAV 18 may raise IndexError for it after the last packet, depending on what the memory holds."""

    def demux(_):
        yield "packet"
        raise IndexError

    video = Video(str(data / "video.mp4"))
    assert list(video._packets(SimpleNamespace(demux=demux), None)) == ["packet"]
