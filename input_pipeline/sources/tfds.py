"""Data sets that TensorFlow Datasets has prepared, as ArrayRecord files of frames that are pictures of their own.

The lists are the splits, `train` or a slice of one such as `train[:90%]`, in the folder of the data set, which holds
a version of it, or a configuration with a version. All is read without TensorFlow. Labels lie between the frames, so
that reading a list reads the whole split once.
"""

import os

from google.protobuf import json_format

from input_pipeline.errors import DataError, DecodeError
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL = ("train",), ("test",)

_INFO, _FORMAT = "dataset_info.json", "array_record"


def read(path, *, root, split) -> Listing:
    """The records of a split; the name of each is its number in there."""
    from input_pipeline.shards import read_shard

    del root, split
    folder, part = _locate(path)
    video, label = _features(folder)
    entries = []
    for instruction in _files(folder, part):
        file = str(instruction.filename)
        try:
            for position, data in enumerate(read_shard(file)):
                if instruction.skip <= position < instruction.skip + instruction.take:
                    numbers = example(data)[label].int64_list.value
                    entries.append(
                        Entry(
                            f"{part} {len(entries)}",
                            file,
                            numbers[0] if numbers[0] >= 0 else None,
                            0,
                            position=position,
                            feature=video,
                        )
                    )
        except (DecodeError, KeyError, IndexError) as error:
            raise DataError(f"{file}: a record has no {label!r} that can be read: {error}") from None
    return Listing(tuple(entries))


def classes(root, train):
    """The names in the order of their labels; None where the data set has only numbers."""
    del root
    folder, _ = _locate(train)
    _, label = _features(folder)
    path = os.path.join(folder, f"{label}.labels.txt")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return tuple(name for name in file.read().split("\n") if name)


def example(data):
    """The features by name, `tf.train.Feature`, of a record. DecodeError where it holds none."""
    from google.protobuf.message import DecodeError as Malformed
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(data).features.feature
    except Malformed as error:
        raise DecodeError(f"no record of TensorFlow Datasets: {error}") from None


def _locate(path):
    """The folder with the files, and the name of the split."""
    folder, part = os.path.split(path)
    found = [os.path.relpath(at, folder) for at, folders, files in os.walk(folder) if _INFO in files]
    versions = {}
    for name in found:
        configuration, version = os.path.split("" if name == "." else name)
        versions.setdefault(configuration, []).append(version)
    if not versions:
        raise DataError(
            f"{folder} holds no data set of TensorFlow Datasets (data.source=tfds): data.root is the "
            "folder that they are kept in, often ~/tensorflow_datasets, and data.name the one to take."
        )
    if len(versions) > 1:
        raise DataError(
            f"{folder} holds several configurations: add one of {', '.join(sorted(versions))} to "
            "data.name, after a slash."
        )
    ((configuration, names),) = versions.items()
    latest = max(names, key=lambda name: [int(number) for number in name.split(".") if number.isdigit()])
    return os.path.join(folder, configuration, latest).rstrip("/"), part


def _features(folder):
    """The names of the feature that holds the frames and of the one that is the label."""
    from tensorflow_datasets.core.proto import feature_generated_pb2

    path = os.path.join(folder, "features.json")
    try:
        with open(path, encoding="utf-8") as file:
            features = json_format.Parse(file.read(), feature_generated_pb2.Feature(), ignore_unknown_fields=True)
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    kinds = {name: feature.WhichOneof("content") for name, feature in features.features_dict.features.items()}
    names = []
    for kind in ("video", "class_label"):
        having = [name for name in kinds if kinds[name] == kind]
        if len(having) != 1:
            raise DataError(
                f"{path}: a data set must have one feature of the kind {kind}, but "
                f"{' and '.join(having) or 'none of its features'} "
                f"{'are' if len(having) > 1 else 'is'} one."
            )
        names += having
    return names


def _files(folder, part):
    """Which records of which files a split consists of."""
    from tensorflow_datasets.core import dataset_info, naming, splits

    try:
        info = dataset_info.read_proto_from_builder_dir(folder)
        template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=info.name, filetype_suffix=_FORMAT)
        instructions = splits.SplitDict.from_proto(info.splits, template)[part].file_instructions
    except Exception as error:  # its readers raise what they like
        raise DataError(f"{folder}: {error}") from None
    # Files in the format that was asked for may lie beside those that the data set was first written in.
    if not all(os.path.exists(instruction.filename) for instruction in instructions):
        raise DataError(
            f"{folder} is in the format {info.file_format or 'tfrecord'}, which has no random access: have "
            f"`tfds build {info.name} --file_format={_FORMAT}` or `tfds convert_format "
            f"--dataset_version_dir={folder} --out_file_format={_FORMAT}` write it anew, where TensorFlow "
            "(and for the latter Apache Beam) is installed."
        )
    return instructions
