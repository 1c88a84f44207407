"""Reading lists, and finding the videos that they name."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator

from input_pipeline import json_files
from input_pipeline.errors import DataError
from input_pipeline.text import is_unicode

_VIDEOS = frozenset(".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split())
_PICTURES = frozenset(".bmp .gif .heic .jpeg .jpg .png .tif .tiff .webp".split())
_OF_SYSTEM = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini"))  # written by macOS and Windows beside people's files
_FRAME = re.compile(r"[^.].*\d\.jpe?g|\d\.jpe?g", re.IGNORECASE)
_SET_ROOT = (
    "Set data.root to the folder of the data set and data.train and data.val to its lists. data.source=auto reads "
    "folders of videos, one for each class, without lists."
)

_LARGEST_JSON = 2**31  # bytes


def read_text(path, advice=_SET_ROOT, errors="strict") -> str:
    """Returns the text of a UTF-8 file with or without a byte order mark.

    Args:
        path: the file.
        advice: sentence to add to the error if the file does not exist, or "".
        errors: 'strict' refuses bytes that are not UTF-8, 'surrogateescape' keeps them, see `open`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", errors=errors, newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path} was not found. {advice}".rstrip()) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is invalid.") from None


def read_lines(path, advice=_SET_ROOT) -> list[tuple[int, str]]:
    """Returns (line number, line without surrounding blanks) of the lines that are not blank; see `read_text`."""
    stripped = (line.strip() for line in read_text(path, advice).split("\n"))
    return [(number, line) for number, line in enumerate(stripped, start=1) if line]


def read_rows(path) -> list[tuple[int, list[str]]]:
    """Returns (line number, fields) of the rows of a CSV file in UTF-8, without blank lines.

    Raises:
        DataError: see `read_text`, or the file is no CSV.
    """
    return parse_rows(path, read_text(path))


def parse_rows(path, text: str, root=None) -> list[tuple[int, list[str]]]:
    """Returns (line number, fields) of the rows of the text of a CSV file, without blank lines.

    Args:
        path: the file.
        text: what `read_text` returned, with 'surrogateescape' if `root` is given.
        root: folder of the files that the first fields name. A row of such a file may hold bytes that are not UTF-8,
            as file names may. None: no row may.

    Raises:
        DataError: the text is no CSV, or such a row names no file.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}.") from None
    for line, row in rows:
        if not is_unicode("".join(row)) and not any(os.path.lexists(os.path.join(root, field)) for field in row):
            raise DataError(f"{path} line {line} is not UTF-8 text, nor does it name a file. Save the list as UTF-8.")
    return rows


def read_json(path, kind: type):
    """Returns the content of a JSON file.

    Args:
        path: the file.
        kind: the required type of the content, list or dict.

    Raises:
        DataError: the file cannot be read, or its content is not of this type.
    """
    try:
        return json_files.read_json(path, kind, _LARGEST_JSON)
    except FileNotFoundError:
        raise DataError(f"{path} was not found. {_SET_ROOT}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except json_files.JsonError as error:
        raise DataError(f"{path} {error}.") from None


def is_video(name) -> bool:
    """Returns whether a file name has the extension of a video."""
    return os.path.splitext(name)[1].lower() in _VIDEOS


def is_picture(name) -> bool:
    """Returns whether a file name has the extension of a picture."""
    return os.path.splitext(name)[1].lower() in _PICTURES


def is_frame(name) -> bool:
    """Returns whether a file name is that of a numbered JPEG frame."""
    return _FRAME.fullmatch(name) is not None


def list_folder(path) -> list[str]:
    """Returns the names in a folder, sorted, without hidden ones and those that macOS and Windows write.

    Raises:
        DataError: `path` is not a folder, or cannot be read.
    """
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith(".") and name not in _OF_SYSTEM)
    except OSError as error:
        raise DataError(f"{path} cannot be read as a folder: {error.strerror}.") from None


def find_folder(root, holds: Callable[[list[str]], bool]) -> str | None:
    """Returns the first of `root` and the folders in it whose list of names satisfies `holds`, or None."""
    for name in ("", *list_folder(root)):
        folder = os.path.join(root, name) if name else root
        if os.path.isdir(folder) and holds(list_folder(folder)):
            return folder
    return None


def walk(root) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """Yields each folder at any depth below `root` with its entries, without hidden ones and sorted by name.

    Folders that the caller removes from the entries are not entered. Symbolic links are followed, and no folder is
    entered twice. Folders that cannot be read, such as lost+found, have no entries.
    """
    folders, entered = [os.fspath(root)], set()
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            continue
        yield folder, entries
        folders += [entry.path for entry in reversed(entries) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def find_videos(root, names: Iterable[str]) -> dict[str, str]:
    """Searches the tree below `root` for videos: files by their name without extension, or folders of frames.

    Args:
        root: folder to search, see `walk`.
        names: names without extension.

    Returns:
        name -> path of the videos that were found.

    Raises:
        DataError: `root` is not a folder, or two files are the same video.
    """
    list_folder(root)  # raises if `root` is not a folder
    names = frozenset(names)
    found: dict[str, str] = {}
    for _, entries in walk(root):
        others = []
        for entry in entries:
            name = entry.name.partition(".")[0]  # up to the first dot, because downloads have names like x.mp4.webm
            if name in names and (is_video(entry.name) or entry.name == name and _is_folder(entry)):
                if name in found:
                    raise DataError(f"{found[name]} and {entry.path} are the same video. Keep only one below {root}.")
                found[name] = entry.path
            else:
                others.append(entry)
        entries[:] = others
    return found
