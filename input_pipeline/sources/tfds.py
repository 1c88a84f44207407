"""Data sets that TensorFlow Datasets prepared: ArrayRecord files whose records hold the frames of a video as pictures.

A list is a split such as `train`, or a slice of a split such as `train[:90%]`, in the folder of the data set. That
folder holds versions, or configurations with versions. TensorFlow is not needed. The labels are stored among the
frames, so reading a list reads the whole split once.
"""

import os

from google.protobuf import json_format

from input_pipeline.errors import DataError, DecodeError
from input_pipeline.json_files import JsonError, read_json
from input_pipeline.shards import read_shard
from input_pipeline.sources.files import read_text, walk
from input_pipeline.sources.listing import Entry, Listing
from input_pipeline.text import one_line

TRAIN, VAL = ("train",), ("test",)

_INFO, _FORMAT = "dataset_info.json", "array_record"
# What the readers of protobuf and of TensorFlow Datasets raise for damaged JSON. SystemError: text that is not UTF-8.
_DAMAGED = (json_format.ParseError, ValueError, LookupError, OSError, SystemError)


def read(path, *, root, split) -> Listing:
    """Returns the records of a split. The name of a record is the split and the number of the record.

    Raises:
        DataError: the data set or the split does not exist, or a record cannot be read.
    """
    del root, split
    folder, split_name = _locate(path)
    frames_feature, label_feature = _features(folder)
    entries: list[Entry] = []
    for instruction in _file_instructions(folder, split_name):
        file = str(instruction.filename)
        try:
            for position, data in enumerate(read_shard(file)):
                if instruction.skip <= position < instruction.skip + instruction.take:
                    number = example(data)[label_feature].int64_list.value[0]
                    name, label = f"{split_name} {len(entries)}", number if number >= 0 else None
                    entries.append(Entry(name, file, label, 0, position=position, feature=frames_feature))
        except (DecodeError, KeyError, IndexError) as error:
            raise DataError(f"{file}: the field {label_feature!r} of a record cannot be read: {error}") from None
    return Listing(tuple(entries))


def classes(root, train) -> tuple[str, ...] | None:
    """Returns the class names in the order of their labels, or None if the data set has only numbers.

    Raises:
        DataError: the data set does not exist, or does not have one label per video.
    """
    del root
    folder, _ = _locate(train)
    _, label_feature = _features(folder)
    path = os.path.join(folder, f"{label_feature}.labels.txt")
    if not os.path.exists(path):
        return None
    return tuple(name for name in read_text(path).replace("\r\n", "\n").split("\n") if name)


def example(data):
    """Returns the features of a record by name, each a `tf.train.Feature`.

    Raises:
        DecodeError: TensorFlow Datasets did not write the record.
    """
    from google.protobuf.message import DecodeError as MalformedMessage
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(data).features.feature
    except MalformedMessage as error:
        raise DecodeError(f"not a record of TensorFlow Datasets: {error}") from None


def _locate(path) -> tuple[str, str]:
    """Returns the folder that holds the files of the data set, and the name of the split."""
    folder, split_name = os.path.split(path)
    versioned = [
        os.path.relpath(parent, folder)
        for parent, entries in walk(folder)
        if any(entry.name == _INFO for entry in entries)
    ]
    versions: dict[str, list[str]] = {}
    for name in versioned:
        configuration, version = os.path.split("" if name == "." else name)
        versions.setdefault(configuration, []).append(version)
    if not versions:
        raise DataError(
            f"{folder} holds no data set of TensorFlow Datasets (data.source=tfds). Set data.root to the folder of "
            "all data sets, often ~/tensorflow_datasets, and data.name to the name of one."
        )
    if len(versions) > 1:
        raise DataError(
            f"{folder} holds several configurations. Add one of {', '.join(sorted(versions))} to data.name, after a "
            "slash."
        )
    ((configuration, numbers),) = versions.items()
    latest = max(numbers, key=lambda version: [int(number) for number in version.split(".") if number.isdigit()])
    return os.path.join(folder, configuration, latest).rstrip("/"), split_name


def _features(folder):
    """Returns the names of the two features that hold the frames and the label."""
    from tensorflow_datasets.core.proto import feature_generated_pb2

    path = os.path.join(folder, "features.json")
    try:
        features = json_format.ParseDict(read_json(path), feature_generated_pb2.Feature(), ignore_unknown_fields=True)
    except JsonError as error:
        raise DataError(f"{path} {error}.") from None
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}.") from None
    kinds = {name: feature.WhichOneof("content") for name, feature in features.features_dict.features.items()}
    names = []
    for kind in ("video", "class_label"):
        matching = [name for name in kinds if kinds[name] == kind]
        if len(matching) != 1:
            raise DataError(
                f"{path}: a data set must have one feature of the kind {kind}, but "
                f"{' and '.join(matching) or 'no feature'} {'are' if len(matching) > 1 else 'is'} of this kind."
            )
        names += matching
    return names


def _reason(error: Exception) -> str:
    """Returns the message of an error on one line of a bounded length."""
    return one_line(error)


def _file_instructions(folder, split_name):
    """Returns the files of a split, each with the first record to read (`skip`) and the number of records (`take`)."""
    from tensorflow_datasets.core import dataset_info, naming, splits

    try:
        info = dataset_info.read_proto_from_builder_dir(folder)
        template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=info.name, filetype_suffix=_FORMAT)
        instructions = splits.SplitDict.from_proto(info.splits, template)[split_name].file_instructions
    except _DAMAGED as error:
        raise DataError(f"{folder} cannot be read: {_reason(error)}.") from None
    # The info names the format that the data set was first written in. Files of another format may lie beside these.
    if not all(os.path.exists(instruction.filename) for instruction in instructions):
        raise DataError(
            f"{folder} is in the format {info.file_format or 'tfrecord'}, which has no random access. On a "
            f"machine with TensorFlow, write it again with `tfds build {info.name} --file_format={_FORMAT}`, or, with "
            f"Apache Beam as well, `tfds convert_format --dataset_version_dir={folder} --out_file_format={_FORMAT}`."
        )
    return instructions
