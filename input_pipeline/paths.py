"""The check of every path that a field of a config or a flag holds."""

import os
import re

from input_pipeline.errors import DataError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # a scheme has two letters or more, a drive of Windows one
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive or a share
_MAX_BYTES = 4095
# The protocols of FFmpeg by which cameras and servers send videos, `pipe:`, and `file:` for a file that grows.
_STREAMS = frozenset(
    ("file", "http", "https", "pipe", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp", "unix")
)


def local_path(name: str, path: str) -> str:
    """Returns a path of the local file system, with the home folder in place of `~` or `~USER`.

    Args:
        name: the flag or the field, such as --out or data.root.
        path: its value.

    Raises:
        DataError: the value is empty, too long, an address such as gs://BUCKET, or a path of Windows; or the home
            folder is unknown.
    """
    where = f"{name}={path}"
    if not path or "\0" in path:
        raise DataError(f"{name}={path!r} must be a path. Write . for the current folder.")
    if len(os.fsencode(path)) > _MAX_BYTES or any(len(os.fsencode(part)) > 255 for part in path.split(os.sep)):
        raise DataError(f"{name}={path[:20]}... is too long for a path. Give a shorter one.")
    if address := _ADDRESS.match(path):
        scheme = address[1].lower()
        if scheme == "file":
            raise DataError(f"{where} must be a path. Leave out file://.")
        raise DataError(
            f"{where} is an address ({scheme}://), and only files and folders of this machine are read and written. "
            "Copy them to this machine, or mount the bucket as a folder."
        )
    if _WINDOWS.match(path):
        raise DataError(
            f"{where} is a path of Windows. Under WSL, the drive C: is the folder /mnt/c. Mount a share as a folder."
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = path.split(os.sep)[0]
        reason = f"there is no user {user[1:]!r}" if user != "~" else "the home folder of this user is not known"
        raise DataError(f"{where}: {reason}. Write the whole path, or ./{path} for a file with this name.")
    return expanded


def is_address(path: str) -> bool:
    """Returns whether something that is not a file here looks like an address, such as http://HOST/VIDEO.mp4."""
    return _ADDRESS.match(path) is not None and not os.path.exists(path)


def is_stream(address: str) -> bool:
    """Returns whether a video is the number of a camera or the address of a stream, and not a path."""
    scheme, colon, _ = address.partition(":")
    return address.isdecimal() or bool(colon) and scheme.lower() in _STREAMS


def is_live(address: str) -> bool:
    """Returns whether a video is a camera, a stream, or something else than a file or folder, such as a named pipe."""
    is_stored = os.path.isfile(address) or os.path.isdir(address)
    return is_stream(address) or os.path.exists(address) and not is_stored
