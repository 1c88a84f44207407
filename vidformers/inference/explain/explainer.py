"""What a trained run looked at in a video: from Python, and as `--mode=explain`."""

import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from input_pipeline.files import write_bytes
from input_pipeline.show import draw, encode_png
from vidformers.errors import require
from vidformers.inference.explain.pictures import draw_lines, encode_mp4, enlarged, overlay
from vidformers.inference.explain.relevance import relevance
from vidformers.inference.predict import Clip, Predictor, find_videos, load_for_command
from vidformers.parallel.memory import bytes_available, program_bytes
from vidformers.progress import log, table


class Explanation(NamedTuple):
    """What a model looked at in a clip, its maps on the grid of patches (t' y' x'). See `relevance.Relevance`.

    Attributes:
        clip: the middle of a video, as the model saw it.
        target: name of the class that is explained.
        probabilities: (classes).
        rollout, gradient: (t' y' x').
        heads: (h t' y' x'), or None.
        time: (t), what VTN's class token reads of each frame; None of other models.
        dictionary: by attention, a dictionary's share in each layer.
    """

    clip: Clip
    target: str
    probabilities: np.ndarray
    rollout: np.ndarray
    gradient: np.ndarray
    heads: np.ndarray | None
    time: np.ndarray | None
    dictionary: dict[str, list[float]]

    def files(self) -> dict[str, bytes]:
        """Pictures and arrays by the name of their file, see `explain`."""
        frames = enlarged(self.clip.frames)
        rows = {"video": frames, "rollout": overlay(frames, self.rollout), "gradient": overlay(frames, self.gradient)}
        video = np.concatenate(list(rows.values()), axis=2)
        if self.heads is not None:
            rows |= {f"head {number}": overlay(frames, maps) for number, maps in enumerate(self.heads, start=1)}
        index = np.broadcast_to(self.clip.index, (len(rows), len(frames)))
        strip = draw([f"{self.target}\n{name}" for name in rows], np.stack(list(rows.values())), index)
        arrays, about = io.BytesIO(), self._asdict() | self.clip._asdict()
        np.savez(arrays, **{name: value for name, value in about.items() if isinstance(value, np.ndarray)})
        about = {"video": self.clip.video, "class": self.target, "dictionary": self.dictionary}
        files = {
            "relevance.png": encode_png(strip),
            "relevance.mp4": encode_mp4(video),
            "explanation.npz": arrays.getvalue(),
            "explanation.json": (json.dumps(about, indent=1) + "\n").encode(),
        }
        if self.time is not None:
            files["time.png"] = draw_lines({"": self.time}, "frame", "attention of the class token")
        if self.dictionary:
            files["dictionary.png"] = draw_lines(self.dictionary, "layer", "attention that goes to the dictionary")
        return files


class Explainer:
    """Explains what a `Predictor` says. Compiled at the first video, once."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor

        def run(parameters, *clip):
            return relevance(nnx.merge(predictor.graph, parameters), *clip)

        self._relevance = cache(lambda *shapes: self._compiled(run, shapes))

    def _compiled(self, run, shapes):
        compiled = jax.jit(run).lower(self._predictor.parameters, *shapes).compile()
        have, limit = program_bytes(compiled) / 2**30, bytes_available() / 2**30
        require(
            have <= limit,
            f"An explanation holds all attention weights, {have:.1f} GiB of which {limit:.1f} are "
            "there: take fewer frames with eval.frames or data.frames.",
        )
        return compiled

    def each(self, videos: Sequence, target: str | None = None) -> Iterator[Explanation | Clip]:
        """The `Explanation` of each video for the class `target`, by default the likeliest, or its `Clip` with an
        error where it will not decode.

        Raises:
            ConfigError: there is no such class, or memory will not do.
        """
        classes = self._predictor.classes
        require(
            target is None or target in classes,
            f"--target={target} is none of {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}.",
        )
        label = None if target is None else np.array([classes.index(target)])
        for clip in self._predictor.clips(videos):
            if clip.error:
                yield clip
                continue
            arrays = (clip.frames[None], clip.index[None], label)
            run = self._relevance(*(None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
            found = jax.device_get(run(self._predictor.parameters, *arrays))
            logits = found.logits[0].astype(np.float64)
            yield Explanation(
                clip,
                classes[found.target[0]],
                np.exp(logits - np.logaddexp.reduce(logits)),
                found.rollout[0],
                found.gradient[0],
                _first(found.heads),
                _first(found.frames),
                {name: share[:, 0].tolist() for name, share in found.dictionary.items()},
            )


def _first(rows):
    return None if rows is None else rows[0]


def explain(config: dict, workdir, video: str, out: str, target: str | None = None) -> None:
    """`--mode=explain`: for each video a folder in `out`, its explanation for a class or for the likeliest.

    `relevance.png` has the frames and below them both maps and the heads', `relevance.mp4` frames and both maps side by
    side; `time.png` and `dictionary.png` are of models over time and with a dictionary; `explanation.npz` and `.json`
    hold the numbers.

    Raises:
        ConfigError: no checkpoint, no video, or no such class.
    """
    videos = find_videos(video)
    predictor = load_for_command(config, workdir)
    log(f"{workdir} at step {predictor.step}: {len(videos)} videos.")
    names = [Path(path).stem for path in videos]
    for number, found in enumerate(Explainer(predictor).each(videos, target)):
        if isinstance(found, Clip):
            log(f"Left out, it will not decode: {found.error}")
            continue
        name = names[number] if names.count(names[number]) == 1 else f"{number:04d}_{names[number]}"
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in found.files().items():
            write_bytes(folder / file, content)
        if len(videos) <= 10:
            table(found.clip.video, [(name, f"{p:.1%}") for name, p in predictor.best(found.probabilities)])
        log(f"{folder}: what counts for {found.target}.")
