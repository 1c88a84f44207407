"""Reading what TensorFlow Datasets has written: goldens/tfds holds numbered videos that it prepared itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numbered import picture

from input_pipeline import DataError, Pipeline
from input_pipeline.errors import DecodeError
from input_pipeline.videos import CompressedFrames, open_video

ROOT = Path(__file__).parents[1] / "goldens" / "tfds"
VERSION = Path("numbered", "1.0.0")


def pipeline(root=ROOT, **kwargs):
    return Pipeline(
        **{
            **dict(
                source="tfds",
                root=str(root),
                name="numbered",
                num_classes=3,
                frames=4,
                size=16,
                short_side=(16, 20),
                workers=0,
            ),
            **kwargs,
        }
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT, tmp_path / "tfds")
    return tmp_path / "tfds"


def shown(manifest):
    """Number of each video -> its label, after a look at all of its frames."""
    labels = {}
    for record in manifest.records:
        video = open_video(record, frame_rate=10.0)
        frames = video.frames(range(len(video.times)))
        number = len(frames) - 4
        np.testing.assert_array_equal(frames, [picture(10 * number + i) for i in range(len(frames))])
        np.testing.assert_allclose(video.times, np.arange(len(frames)) / 10)
        labels[number] = record.label
    return labels


def test_every_frame_of_every_record():
    data = pipeline()
    assert shown(data.train_manifest) == {n: n % 3 for n in range(7)}
    assert shown(data.val_manifest) == {n: n % 3 for n in range(7, 10)}
    assert data.class_names == ("left", "right", "stay")


@pytest.mark.quick
def test_only_requested_frames_are_decoded():
    video = open_video(pipeline().val_manifest.records[0])
    frames = video.frames([3, 0, 3])
    assert video.decoded == 2 and np.array_equal(frames[0], frames[2])
    assert video.info().codec == "png"


def test_slices_of_a_split():
    both = [shown(pipeline(train=f"train[{part}]").train_manifest) for part in (":4", "4:")]
    assert len(both[0]) == 4 and both[0] | both[1] == {n: n % 3 for n in range(7)}


def test_the_latest_version_counts_and_a_configuration_is_named(copy):
    shutil.copytree(copy / VERSION, copy / "numbered" / "0.9.0")
    assert "1.0.0" in pipeline(copy).train_manifest.records[0].path
    shutil.copytree(copy / VERSION, copy / "both" / "small" / "1.0.0")
    shutil.copytree(copy / VERSION, copy / "both" / "large" / "1.0.0")
    with pytest.raises(DataError, match="several configurations. Add one of large, small to data.name"):
        pipeline(copy, name="both").train_manifest
    assert "small" in pipeline(copy, name="both/small").train_manifest.records[0].path


def test_a_batch_holds_videos_of_the_split():
    batch = next(pipeline().train_batches(batch_size=4, seed=0))
    assert batch["mask"].all() and batch["video"].shape == (4, 4, 16, 16, 3)


def test_tensorflow_is_not_needed():
    """A process that reads the lists and every frame, as a worker does, imports TensorFlow Datasets alone."""
    script = (
        "import sys\n"
        "from input_pipeline.annotations import read_manifest\n"
        "from input_pipeline.videos import open_video\n"
        "for split in 'train', 'test':\n"
        "    manifest = read_manifest(f'numbered/{split}', source='tfds', root=sys.argv[1], num_classes=3)\n"
        "    for record in manifest.records:\n"
        "        video = open_video(record)\n"
        "        print(record.label, len(video.frames(range(len(video.times)))))\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules"
    )
    command, root = [sys.executable, "-c", script, str(ROOT)], Path(__file__).parents[2]
    done = subprocess.run(command, check=True, cwd=root, env={"PATH": ""}, stdout=subprocess.PIPE, text=True)
    # Video n has n + 4 frames and the label n % 3; the order within a split is that of its files.
    videos = sorted(tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert videos == sorted((n % 3, n + 4) for n in range(10))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(name="kinetics"), r"kinetics holds no data set .* Set data\.root to the folder"),
        (dict(train="training"), "Unknown split 'training'. Should be one of"),
        (dict(num_classes=4), "have 3 classes, but data.num_classes is 4"),
        (dict(name=None), r"data\.name must be a data set"),
    ],
)
def test_mistakes_in_the_config(change, sentence):
    with pytest.raises(DataError, match=sentence):
        pipeline(**change).train_manifest


def test_files_without_random_access(copy):
    info = json.loads((copy / VERSION / "dataset_info.json").read_text())
    (copy / VERSION / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    for file in (copy / VERSION).glob("*array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(
        DataError, match="format tfrecord, which has no random access. On a machine .* `tfds build numbered "
    ):
        pipeline(copy).train_manifest


def test_a_data_set_without_videos(copy):
    features = json.loads((copy / VERSION / "features.json").read_text())
    del features["featuresDict"]["features"]["video"]
    (copy / VERSION / "features.json").write_text(json.dumps(features))
    with pytest.raises(DataError, match=r"features\.json: .* one feature of the kind video, but no feature is"):
        pipeline(copy).train_manifest


def test_features_and_classes_that_are_no_text_are_named(copy):
    features = copy / VERSION / "features.json"
    text = features.read_text()
    features.write_text('{"\\ud800": 1, ' + text.lstrip()[1:])
    with pytest.raises(DataError, match=r"features\.json cannot be read"):
        pipeline(copy).train_manifest
    features.write_text(text)
    for file in (copy / VERSION).glob("*.labels.txt"):
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"labels\.txt is not UTF-8 text"):
        _ = pipeline(copy).class_names


def test_damaged_files(copy):
    file = sorted((copy / VERSION).glob("*train*"))[0]
    data = bytearray(file.read_bytes())
    data[200] ^= 8
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"{file.name}"):
        pipeline(copy).train_manifest
    with pytest.raises(DecodeError, match="frame 0 is not a picture"):
        CompressedFrames([b"text"], 30.0, "clip").frames([0])
    with pytest.raises(DecodeError, match="clip: the video has no frames"):
        CompressedFrames([], 30.0, "clip")
