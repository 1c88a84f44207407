"""PyTorch's DataLoader over video files, the peer of the input pipeline. It works on request.

Runs where torch, torchcodec and av are installed, without vidformers. Another program drives it through stdin, so that
both can take turns on the same machine:

    start       prints a JSON line: versions, settings
    run SKIP N  drops SKIP batches, takes N more and prints {"seconds": ..., "mean": ...}
    quit        ends it, and so does the end of stdin

A clip has the frames whose indices the list gives for a file, uint8, cropped to their centre. They are decoded by
torchcodec (exact seeks, one FFmpeg thread) or by PyAV (from the start of the file to the last frame wanted).
"""

import argparse
import itertools
import json
import sys
import time

import numpy as np
import torch


class Clips(torch.utils.data.IterableDataset):
    """Clips, (t, y, x, c) uint8, without end. Each worker reads its share of the list."""

    def __init__(self, rows, decoder, size):
        self.rows, self.decode, self.size = rows, {"torchcodec": torchcodec_frames, "pyav": pyav_frames}[decoder], size

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        for path, indices in itertools.islice(itertools.cycle(self.rows), worker.id, None, worker.num_workers):
            frames = self.decode(path, indices)
            top, left = (frames.shape[1] - self.size) // 2, (frames.shape[2] - self.size) // 2
            yield frames[:, top : top + self.size, left : left + self.size].contiguous()


def torchcodec_frames(path, indices):
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at(indices).data


def pyav_frames(path, indices):
    import av

    wanted, frames = set(indices), {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                frames[index] = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1))
                if index == max(indices):
                    break
    return torch.stack([frames[index] for index in indices])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", required=True, help="JSON: pairs of a path and the indices of its frames")
    parser.add_argument("--decoder", choices=["torchcodec", "pyav"], required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    with open(args.list, encoding="utf-8") as file:
        rows = json.load(file)
    loader = torch.utils.data.DataLoader(
        Clips(rows, args.decoder, args.size),
        batch_size=args.batch,
        num_workers=args.workers,
        prefetch_factor=2,
        multiprocessing_context="spawn",
    )
    start = {"torch": torch.__version__, "python": sys.version.split()[0], "decoder": args.decoder}
    if args.decoder == "torchcodec":
        import torchcodec

        start["torchcodec"] = torchcodec.__version__
    else:
        import av

        start["av"] = av.__version__
    batches = iter(loader)
    next(batches)
    print(json.dumps(start), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["run", skip, count]:
                for _ in range(int(skip)):
                    next(batches)
                started = time.perf_counter()
                means = [float(np.mean(next(batches).numpy()[:, :, ::16, ::16])) for _ in range(int(count))]
                print(
                    json.dumps({"seconds": time.perf_counter() - started, "mean": sum(means) / len(means)}), flush=True
                )
            case ["quit"]:
                break
            case other:
                sys.exit(f"Commands are run and quit, not {other!r}.")


if __name__ == "__main__":
    main()
