"""Explains the prediction for a clip by relevance maps, and draws them."""

import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from input_pipeline.show import draw, encode_png
from vidformers.errors import require
from vidformers.inference.clip import Clip
from vidformers.inference.explain.pictures import draw_lines, encode_mp4, enlarged, overlay
from vidformers.inference.explain.relevance import relevance
from vidformers.parallel.memory import bytes_available, program_bytes


class Explanation(NamedTuple):
    """The relevance of the patches and frames of a clip for a class.

    Maps are on the grid of patches (t' y' x'). `relevance.Relevance` defines them.

    Attributes:
        clip: the clip, from the middle of the video.
        target: the name of the explained class.
        probabilities: (classes).
        rollout, gradient: (t' y' x').
        heads: (h t' y' x'), or None.
        time: (t), in VTN, the attention weights of the class token on the frames. None for other models.
        dictionary: by name of the attention sublayer, the share of the attention weights on the dictionary, by layer.
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
        """Returns pictures and arrays by file name, see `explain_videos.explain`."""
        frames = enlarged(self.clip.frames)
        rows = {"video": frames, "rollout": overlay(frames, self.rollout), "gradient": overlay(frames, self.gradient)}
        video = np.concatenate(list(rows.values()), axis=2)
        if self.heads is not None:
            rows |= {f"head {number}": overlay(frames, maps) for number, maps in enumerate(self.heads, start=1)}
        index = np.broadcast_to(self.clip.index, (len(rows), len(frames)))
        strip = draw([f"{self.target}\n{name}" for name in rows], np.stack(list(rows.values())), index)
        fields = self._asdict() | self.clip._asdict()
        arrays = io.BytesIO()
        np.savez(arrays, **{name: value for name, value in fields.items() if isinstance(value, np.ndarray)})
        about = {"video": self.clip.video, "class": self.target, "dictionary": self.dictionary}
        files = {
            "relevance.png": encode_png(strip),
            "relevance.mp4": encode_mp4(video),
            "explanation.npz": arrays.getvalue(),
            "explanation.json": (json.dumps(about, indent=1) + "\n").encode(),
        }
        if self.time is not None:
            files["time.png"] = draw_lines({"": self.time}, "frame", "attention weight of the class token")
        if self.dictionary:
            files["dictionary.png"] = draw_lines(self.dictionary, "layer", "share of attention on the dictionary")
        return files


class Explainer:
    """Explains the predictions of a model. It is compiled at the first clip.

    Args:
        graph: the structure of the model for `nnx.merge`.
        parameters: the parameters as a tree of arrays.
        classes: the class names by label.
    """

    def __init__(self, graph, parameters, classes: Sequence[str]):
        self._graph, self._parameters, self._classes, self._programs = graph, parameters, classes, {}

    def require_class(self, target: str | None) -> None:
        """Raises ConfigError unless `target` is the name of a class or None."""
        names = ", ".join(self._classes[:8]) + (", ..." if len(self._classes) > 8 else "")
        require(target is None or target in self._classes, f"--target={target} is not one of the classes {names}.")

    def __call__(self, clip: Clip, target: str | None = None) -> Explanation:
        """Explains a clip for the class `target`, or for the likeliest class.

        Raises:
            ConfigError: there is no such class, or the attention weights do not fit in memory.
        """
        self.require_class(target)
        label = None if target is None else np.array([self._classes.index(target)])
        arrays = (clip.frames[None], clip.index[None], label)
        result = jax.device_get(self._program(arrays)(self._parameters, *arrays))
        logits = result.logits[0].astype(np.float64)
        return Explanation(
            clip,
            self._classes[result.target[0]],
            np.exp(logits - np.logaddexp.reduce(logits)),
            result.rollout[0],
            result.gradient[0],
            None if result.heads is None else result.heads[0],
            None if result.frames is None else result.frames[0],
            {name: share[:, 0].tolist() for name, share in result.dictionary_shares.items()},
        )

    def _program(self, arrays):
        """Returns the compiled program for arrays of these shapes."""
        shapes = tuple(x if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        if shapes not in self._programs:

            def run(parameters, *clip):
                return relevance(nnx.merge(self._graph, parameters), *clip)

            compiled = jax.jit(run).lower(self._parameters, *shapes).compile()
            needed, available = program_bytes(compiled) / 2**30, bytes_available() / 2**30
            require(
                needed <= available,
                f"An explanation needs {needed:.1f} GiB to hold all attention weights, but the device has "
                f"{available:.1f} GiB. Use fewer frames: reduce eval.frames or data.frames.",
            )
            self._programs[shapes] = compiled
        return self._programs[shapes]
