"""Clips per second of the input pipeline and of PyTorch's DataLoader with torchcodec and with PyAV, in turns.

Command: python -m benchmarks.input --peer-python=PYTHON [--sampling=uniform|dense|whole] [--rounds=5] [--clips=200]
    [--videos=40] [--workers=2] [--folder=DIR]
PYTHON is an interpreter with torch, torchcodec (and the FFmpeg that it needs) and av. All contenders read the same
videos, 10 s at 340x256 and 25 frames a second, which are rendered into DIR and kept there: H.264 in groups of 250
frames with B-frames, and in groups of 12; and shards prepared from each. All return the same frames, their centre of
224 pixels, in batches of 8, from the same number of worker processes. Uniform sampling takes 8 frames of the whole
video, dense 16 frames 4 apart, whole 64 frames. One JSON line for each group length: medians and ranges of clips per
second, the ratios to torchcodec, and the waiting time of a simulated training step that consumes 80% of that rate.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np

from input_pipeline import Pipeline
from input_pipeline.decode import Video
from input_pipeline.files import atomic_file

PEER = Path(__file__).with_name("dataloader.py")
HEIGHT, WIDTH, RATE, SECONDS, SIZE, BATCH = 256, 340, 25, 10, 224, 8
GROUPS = {250: "bframes=3", 12: "bframes=0"}
SAMPLING = {
    "uniform": dict(frames=8, sampling="uniform"),
    "dense": dict(frames=16, sampling="dense", stride=4),
    "whole": dict(frames=64, sampling="uniform"),
}
SKIP = 12  # batches that may have been ready before a turn began
LOAD = 0.8  # share of the measured rate at which the simulated training step consumes clips


def render(folder: Path, group: int, videos: int) -> None:
    """Renders videos of a moving, rotating texture with camera noise. Existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        path = folder / f"{number:04d}.mp4"
        if path.exists():
            continue
        rng = np.random.default_rng(number)
        texture = (
            sum(
                cv2.resize(
                    rng.normal(0, 16 * 2**level, (9 << (4 - level), 12 << (4 - level), 3)),
                    (680, 512),
                    interpolation=cv2.INTER_CUBIC,
                )
                for level in range(4)
            )
            + 128
        )
        (dy, dx), turn = rng.uniform(-6, 6, 2), rng.uniform(-0.4, 0.4)
        with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream(
                "libx264",
                rate=RATE,
                options={"crf": "23", "x264-params": f"keyint={group}:min-keyint={group}:scenecut=0:{GROUPS[group]}"},
            )
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for t in range(RATE * SECONDS):
                view = cv2.getRotationMatrix2D((340, 256), turn * t, 1.0)
                view[:, 2] += (dx * t - 170, dy * t - 128)
                image = cv2.warpAffine(texture, view, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
                image = np.clip(image + rng.normal(0, 1.5, image.shape), 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text("".join(f"{number:04d}.mp4,0\n" for number in range(videos)))


def prepare(folder: Path) -> Path:
    out = folder.with_name(folder.name + "_shards")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "input_pipeline.prepare",
            "--config=configs/vit_b16.py",
            f"--config.data.root={folder}",
            "--config.data.num_classes=1",
            f"--out={out}",
        ],
        check=True,
        stdout=sys.stderr,
    )
    return out


class Ours:
    """Evaluation batches with one centre crop, repeated without end."""

    def __init__(self, workers, **data):
        pipeline = Pipeline(num_classes=1, size=SIZE, test_short_side=HEIGHT, workers=workers, **data)
        self.pipeline, self.records = pipeline, pipeline.val_manifest.records
        self.batches = pipeline.val_batches(batch_size=BATCH, clips=1, crops=1, records=self.records * 2000)
        next(self.batches)

    def indices(self):
        """Yields (path, frame indices) of each record, which all contenders read."""
        for record in self.records:
            video = Video(record.path)
            yield record.path, self.pipeline.sampler.test(video.times, video.duration, 1)[0].tolist()

    def run(self, skip, count):
        for _ in range(skip):
            next(self.batches)
        started = time.perf_counter()
        means = []
        for _ in range(count):
            batch = next(self.batches)
            assert batch["mask"].all(), batch["error"]
            means.append(float(np.mean(batch["video"][:, 0, :, ::16, ::16])))
        return time.perf_counter() - started, sum(means) / len(means)

    def wait(self, rate, count):
        """Returns the share of time that a consumer of `rate` clips per second waits for clips."""
        waited = 0.0
        for _ in range(SKIP):
            next(self.batches)
        for _ in range(count):
            started = time.perf_counter()
            next(self.batches)
            waited += time.perf_counter() - started
            time.sleep(BATCH / rate)
        return waited / (waited + count * BATCH / rate)

    def close(self):
        self.batches.close()


class Peer:
    """A process that runs `dataloader.py`."""

    def __init__(self, python, rows, decoder, workers):
        self.process = subprocess.Popen(
            [
                python,
                str(PEER),
                f"--list={rows}",
                f"--decoder={decoder}",
                f"--batch={BATCH}",
                f"--workers={workers}",
                f"--size={SIZE}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = json.loads(self.process.stdout.readline())

    def run(self, skip, count):
        print("run", skip, count, file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["mean"]

    def close(self):
        with self.process:
            print("quit", file=self.process.stdin, flush=True)


def settle() -> None:
    """Waits until the processor is idle: the contender before may still fill its buffers."""
    idle = 0
    while idle < 3:
        before = _cpu_times()
        time.sleep(0.2)
        elapsed = [after - start for start, after in zip(before, _cpu_times(), strict=True)]
        idle = idle + 1 if elapsed[3] > 0.9 * sum(elapsed) else 0


def _cpu_times():
    """Returns the jiffies in user, nice, system, idle, iowait, irq and softirq since the start of the machine."""
    with open("/proc/stat", encoding="ascii") as file:
        return [int(number) for number in file.readline().split()[1:8]]


def measure(group: int, args) -> dict:
    files = Path(args.folder) / f"group{group}"
    render(files, group, args.videos)
    shards = prepare(files)
    sampling = SAMPLING[args.sampling]
    contenders = {"files": Ours(args.workers, root=str(files), **sampling)}
    contenders["shards"] = Ours(args.workers, source="shards", root=str(shards), **sampling)
    rows = Path(args.folder) / f"group{group}_{args.sampling}.json"
    rows.write_text(json.dumps(list(contenders["files"].indices())))
    for decoder in ("torchcodec", "pyav"):
        contenders[decoder] = Peer(args.peer_python, rows, decoder, args.workers)
    count = -(-args.clips // BATCH)
    rates, means = {name: [] for name in contenders}, {name: [] for name in contenders}
    try:
        for _ in range(args.rounds):
            for name, contender in contenders.items():
                settle()
                seconds, mean = contender.run(SKIP, count)
                rates[name].append(count * BATCH / seconds)
                means[name].append(mean)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        waits = {}
        for name in ("files", "shards"):
            settle()
            waits[name] = contenders[name].wait(LOAD * medians[name], count)
    finally:
        for contender in contenders.values():
            contender.close()
    return {
        "benchmark": "input",
        "group": group,
        "sampling": args.sampling,
        "clips_per_round": count * BATCH,
        "rounds": args.rounds,
        "workers": args.workers,
        "clips_per_second": medians,
        "range": {name: [min(values), max(values)] for name, values in rates.items()},
        "over_torchcodec": {name: medians[name] / medians["torchcodec"] for name in ("files", "shards")},
        f"waiting_at_{LOAD:.0%}_of_own_rate": waits,
        "mean_level": {name: statistics.mean(values) for name, values in means.items()},
        "bytes_per_video": {
            "files": _bytes(files, "*.mp4") / args.videos,
            "shards": _bytes(shards, "val*.array_record") / args.videos,
        },
        "peers": {name: contenders[name].about for name in ("torchcodec", "pyav")},
    }


def _bytes(folder, pattern):
    return sum(path.stat().st_size for path in folder.glob(pattern))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--sampling", choices=list(SAMPLING), default="uniform")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default="data/benchmark_input")
    args = parser.parse_args()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        processor = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    for group in GROUPS:
        print(
            json.dumps(
                measure(group, args)
                | {
                    "device": processor,
                    "cores": os.cpu_count(),
                    "date": datetime.date.today().isoformat(),
                    "versions": {name: importlib.metadata.version(name) for name in ("av", "grain", "array_record")},
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
