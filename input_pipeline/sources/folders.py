"""One folder per class, named after the class: `train/CLASS/video.mp4`. A video may be a folder of JPEG frames."""

import os

from input_pipeline.errors import DataError
from input_pipeline.sources.files import is_video, list_folder
from input_pipeline.sources.listing import Entry, Listing

TRAIN, VAL, TEST = ("train",), ("val", "validation"), ("test",)


def read(path, *, root, split) -> Listing:
    """Returns the videos of the class folders in `path`, sorted by class and file name.

    Raises:
        DataError: `path` is not a folder, a video is not in a class folder, a class folder holds another file, or a
            link leads nowhere.
    """
    del root, split
    entries = []
    for label in list_folder(path):
        folder = os.path.join(path, label)
        _require_target(folder)
        if not os.path.isdir(folder):
            if is_video(label):
                raise DataError(f"{folder} is not in a class folder. Move the video to {path}/CLASS/.")
            continue
        for name in list_folder(folder):
            video = os.path.join(folder, name)
            if not is_video(name) and not os.path.isdir(video):
                raise DataError(f"{video} is not a video by its extension. Move it out of the class folder.")
            entries.append(Entry(f"{label}/{name}", video, label, 0))
    return Listing(tuple(entries))


def classes(root, train) -> tuple[str, ...]:
    """Returns the names of the training folders in alphabetical order."""
    del root
    return tuple(name for name in list_folder(train) if os.path.isdir(os.path.join(train, name)))


def _require_target(path) -> None:
    """Raises DataError if the path is a link that leads nowhere: a class would be left out."""
    if os.path.islink(path) and not os.path.exists(path):
        raise DataError(f"{path} is a link to {os.readlink(path)}, which does not exist. Correct or remove the link.")
