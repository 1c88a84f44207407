"""Reading lists, and finding the videos that they name."""

import csv
import io
import json
import os

from input_pipeline.errors import DataError

_VIDEOS = frozenset(".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split())


def read_text(path, field="manifest") -> str:
    """The text of a file in UTF-8, with or without a byte order mark. DataError where it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path} ({field}) cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} ({field}) is not UTF-8 text (byte {error.start}).") from None


def read_lines(path):
    """Pairs (line number, line without the blanks around it), without blank lines."""
    stripped = (line.strip() for line in read_text(path).split("\n"))
    return [(number, line) for number, line in enumerate(stripped, start=1) if line]


def read_rows(path):
    """Pairs (line number, row of a CSV file), without blank lines."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}.") from None


def read_json(path, kind):
    """The content of a JSON file, which must be a `kind`, list or dict."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno} is not JSON: {error.msg}.") from None
    if not isinstance(content, kind):
        raise DataError(f"{path} must hold a JSON {kind.__name__}, but holds a {type(content).__name__}.")
    return content


def is_video(name) -> bool:
    """Whether a file is a video by its extension."""
    return os.path.splitext(name)[1].lower() in _VIDEOS


def list_folder(path) -> list[str]:
    """The names in a folder, sorted and without hidden ones. DataError where it is none."""
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{path} cannot be read as a folder: {error.strerror}.") from None


def find_folder(root, holds) -> str | None:
    """`root`, or the first folder in it, whose names satisfy `holds`; None where there is none."""
    for name in ("", *list_folder(root)):
        folder = os.path.join(root, name) if name else root
        if os.path.isdir(folder) and holds(list_folder(folder)):
            return folder
    return None


def find_videos(root, names) -> dict[str, str]:
    """Where below `root` the videos of these names lie: files without their extension, or folders of frames.

    Walks the tree once, through symbolic links, and enters no folder twice.

    Args:
      names: set of names without extension.

    Returns:
      name -> path, for those that are there.

    Raises:
      DataError: `root` is no folder, or two files are the same video.
    """
    list_folder(root)
    found, folders, entered = {}, [root], set()
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError:  # lost+found and the like; what was looked for in it will be missing
            continue
        for entry in entries:
            name = entry.name.partition(".")[0]  # up to the first dot: downloads carry names such as x.mp4.webm
            if name in names and (is_video(entry.name) or entry.name == name and entry.is_dir()):
                if name in found:
                    raise DataError(f"{found[name]} and {entry.path} are the same video: keep one below {root}.")
                found[name] = entry.path
            elif entry.is_dir() and not entry.name.startswith("."):
                folders.append(entry.path)
    return found
