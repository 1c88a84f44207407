"""The memory that is available on this machine or in this container."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

# The limit, the usage, and the line of memory.stat with the file cache that the kernel drops first. Control groups
# have two versions.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(root: str = "/") -> float:
    """Returns the bytes of memory that new arrays can take: the machine's, or those of its container if it has fewer.

    Returns infinity if the system does not report them. `root` is the folder that holds `proc` and `sys`.
    """
    available = [math.inf]
    with contextlib.suppress(OSError, KeyError, ValueError):
        available.append(float(_fields(Path(root, "proc/meminfo"))["MemAvailable:"]) * 1024)
    for folder, (limit_name, used_name, cache_name) in _control_groups(Path(root)):
        with contextlib.suppress(OSError, ValueError):  # the limit of version 2 may be the word max
            limit = int((folder / limit_name).read_text(encoding="ascii"))
            used = int((folder / used_name).read_text(encoding="ascii"))
            cache = int(_fields(folder / "memory.stat").get(cache_name, 0))
            available.append(max(limit - (used - cache), 0))
    return min(available)


def _fields(path: Path) -> dict[str, str]:
    """Returns {first word: second word} of the lines of a file."""
    return dict(line.split()[:2] for line in path.read_text(encoding="ascii").splitlines())


def _control_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yields (folder, names of its files) of the control groups of this process, from the innermost to the outermost.

    A container may see its own group as the outermost one, although the path of the group is that on the host.
    """
    mount = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                top, names = (mount / "memory", _VERSION_1) if controllers else (mount, _VERSION_2)
                group = Path(path.lstrip("/"))
                for part in (group, *group.parents):
                    yield top / part, names
