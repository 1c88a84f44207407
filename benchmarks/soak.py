"""Resident memory of a process that decodes many videos, to see whether it stays flat.

Command: python -m benchmarks.soak --folder=DIR [--decodes=20000] [--frames=8]
Opens the videos of DIR in turn, repeatedly, and decodes --frames frames of each, as a worker does. Prints one JSON
line: memory at the start, after a tenth, half and all of the decodes, the peak, and the growth per decode in the second
half.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import resource
from pathlib import Path

import numpy as np

from input_pipeline.decode import Video
from input_pipeline.sampling import Uniform


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--decodes", type=int, default=20000)
    parser.add_argument("--frames", type=int, default=8)
    args = parser.parse_args()
    paths = sorted(str(path) for path in Path(args.folder).rglob("*") if path.suffix in (".mp4", ".avi", ".webm"))
    assert paths, f"{args.folder} holds no videos"
    rng, sampler, base = np.random.default_rng(0), Uniform(args.frames), resident()
    marks = {args.decodes // 10: None, args.decodes // 2: None, args.decodes: None}
    for count in range(1, args.decodes + 1):
        video = Video(paths[count % len(paths)])
        video.frames(sampler.train(video.times, video.duration, rng))
        if count in marks:
            marks[count] = resident()
    _, half, end = marks.values()
    print(
        json.dumps(
            {
                "benchmark": "soak",
                "decodes": args.decodes,
                "videos": len(paths),
                "frames": args.frames,
                "base_bytes": base,
                "bytes_after": {str(count): size for count, size in marks.items()},
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "bytes_a_decode_second_half": (end - half) / (args.decodes - args.decodes // 2),
                "cores": os.cpu_count(),
                "date": datetime.date.today().isoformat(),
                "versions": {name: importlib.metadata.version(name) for name in ("av", "numpy")},
            }
        )
    )


if __name__ == "__main__":
    main()
