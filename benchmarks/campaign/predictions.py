"""SIGKILL at a random moment of `--mode=predict`. The same command, given again, writes what it would have written.

Two of three commands predict a video every 0.1 seconds into a folder, and continue after the last window. The others
predict a list into a file, which appears when it is complete. A case fails if a process or a name in /dev/shm is left,
if the second command does not succeed, or if a byte of its files is another one.
"""

import random
import shutil
import time
from pathlib import Path

import av

from benchmarks.campaign.processes import Run, flags, render, shared_memory

COUNT, SECONDS, BYTES = 24, 300.0, 4 * 2**30
_PARTS = 12  # clips that the long video shows one after the other
_STARTING_SECONDS = 6.0


def case_set(number: int) -> str:
    return "list" if number % 3 == 2 else "timeline"


def prepare(folder: Path) -> None:
    data = render(folder / "data")
    if not (folder / "run" / "checkpoints").is_dir():
        _succeed(flags(data, folder / "run"), folder)
    _write_long_video(sorted((data / "train").iterdir())[:_PARTS], folder / "long.mp4")
    for name, number in (("timeline", 0), ("list", 2)):
        if not (folder / f"reference-{name}").exists():
            out = _out(number, folder)
            _remove(out)
            _succeed(_command(number, folder), folder)
            out.rename(folder / f"reference-{name}")


def run_case(number: int, folder: Path) -> dict:
    out, rng, name = _out(number, folder), random.Random(number), case_set(number)
    _remove(out)
    run = Run(_command(number, folder), folder / "killed.txt", folder / "cache")
    moment, started = _moment(name, out, rng), time.monotonic()
    met = run.wait_until(lambda: moment(time.monotonic() - started))
    names, rows = shared_memory(run.members()), _rows(out)
    run.kill(alone=number // 3 % 2 == 1)
    left, names = run.remains(names)
    problems = ["processes are left"] * bool(left) + ["shared memory is left"] * bool(names)
    status = Run(_command(number, folder), folder / "continued.txt", folder / "cache").wait(120.0)
    if status != 0:
        problems.append(f"the second command ended with status {status}")
    elif _contents(out) != _contents(folder / f"reference-{name}"):
        problems.append("other files")
    return {
        "outcome": "; ".join(problems) or ("same files" if met else "same files, killed after its end"),
        "failed": bool(problems),
        "rows": rows,
        "processes_left": len(left),
        "shared_memory_names_left": len(names),
    }


def _command(number: int, folder: Path) -> list[str]:
    arguments = [f"--workdir={folder}/run", "--mode=predict", f"--out={_out(number, folder)}"]
    if case_set(number) == "list":
        return [*arguments, f"--video={folder}/data/train"]
    return [*arguments, f"--video={folder}/long.mp4", "--every=0.1", "--window=1.0"]


def _out(number: int, folder: Path) -> Path:
    return folder / ("list.jsonl" if case_set(number) == "list" else "timeline")


def _moment(name: str, out: Path, rng: random.Random):
    """Returns a condition on the seconds since the start that holds when the command should be killed."""
    if name == "list" or rng.random() < 0.3:
        seconds = rng.uniform(0.0, 2 * _STARTING_SECONDS)
        return lambda passed: passed > seconds
    row = rng.randrange(1, 40)
    return lambda passed: _rows(out) >= row


def _rows(out: Path) -> int:
    path = out / "windows.jsonl" if out.suffix != ".jsonl" else out
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _contents(out: Path) -> dict[str, bytes]:
    """Returns the content of the files of an output by their names. A single file has the name ''."""
    files = [out] if out.is_file() else sorted(out.iterdir())
    return {"" if path == out else path.name: path.read_bytes() for path in files}


def _remove(out: Path) -> None:
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)


def _succeed(arguments: list[str], folder: Path) -> None:
    run = Run(arguments, folder / "prepare.txt", folder / "cache")
    assert run.wait(SECONDS) == 0, run.output.read_text()


def _write_long_video(clips: list[Path], path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = None
        for clip in clips:
            with av.open(str(clip)) as source:
                for frame in source.decode(video=0):
                    if stream is None:
                        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
                        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                    picture = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                    container.mux(stream.encode(picture))
        container.mux(stream.encode())
