"""Explains the prediction for a clip by relevance maps, and draws them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from input_pipeline.show import draw, encode_png
from vidformers.errors import require
from vidformers.inference.clip import Clip
from vidformers.inference.explain.pictures import draw_lines, draw_strip, encode_mp4, enlarged, overlay
from vidformers.inference.explain.relevance import relevance
from vidformers.models.vtn import TemporalEncoder
from vidformers.parallel.memory import bytes_available, program_bytes
from vidformers.training.scoring import SINGLE_LABEL


class Explanation(NamedTuple):
    """The relevance of the patches and frames of a clip for a class.

    Maps are on the grid of patches (t' y' x'). `relevance.Relevance` defines them.

    Attributes:
        clip: the clip, from the middle of the video.
        target: the name of the explained class.
        target_probability: the probability of the explained class.
        probabilities: (classes).
        rollout, gradient: (t' y' x').
        heads: (h t' y' x'), or None.
        time: (t), in VTN, the attention weights of the class token on the frames in the last temporal layer, averaged
            over heads. None for other models.
        time_layers: (l h t), these weights by layer and head of the temporal encoder, or None.
        dictionary: by name of the attention sublayer, the share of the attention weights on the dictionary, by layer.
    """

    clip: Clip
    target: str
    target_probability: float
    probabilities: np.ndarray
    rollout: np.ndarray
    gradient: np.ndarray
    heads: np.ndarray | None
    time: np.ndarray | None
    time_layers: np.ndarray | None
    dictionary: dict[str, list[float]]

    def files(self, layer: int | None = None) -> dict[str, bytes]:
        """Returns pictures and arrays by file name, see `explain_videos.explain`.

        Args:
            layer: the temporal layer that `time.png` shows, from 1 on. None is the last.
        Raises:
            ConfigError: the model has no such layer.
        """
        require_layer(layer, 0 if self.time_layers is None else len(self.time_layers))
        frames = enlarged(self.clip.frames)
        overlays = {"rollout": overlay(frames, self.rollout), "gradient": overlay(frames, self.gradient)}
        rows = {f"{self.target}\n{self.target_probability:.1%}": frames} | overlays
        video = np.concatenate(list(rows.values()), axis=2)
        if self.heads is not None:
            rows |= {f"head {number}": overlay(frames, maps) for number, maps in enumerate(self.heads, start=1)}
        index = np.broadcast_to(self.clip.index, (len(rows), len(frames)))
        strip = draw(list(rows), np.stack(list(rows.values())), index)
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
        if self.time_layers is not None:
            shown = layer or len(self.time_layers)
            title = f"Attention weights of the class token, layer {shown} of {len(self.time_layers)}; {self.target}"
            files["time.png"] = draw_strip(self.time_layers[shown - 1], self.clip.frames, self.clip.index, title)
        if self.dictionary:
            files["dictionary.png"] = draw_lines(self.dictionary, "layer", "share of attention on the dictionary")
        return files


def draw_beside(explanations: dict[str, Explanation]) -> bytes:
    """Returns a PNG file with the relevance of one clip for one class in several models (HaViT, Figure 3).

    The first row shows the frames. Each further row shows attention rollout, then the gradient method, of one model.
    Each map has its own scale.

    Args:
        explanations: by the name of the model, with the same clip and the same target.
    """
    clip = next(iter(explanations.values())).clip
    frames = enlarged(clip.frames)
    rows = {Path(clip.video).name: frames}
    for method in ("rollout", "gradient"):
        for name, explanation in explanations.items():
            text = f"{name}\n{method}\n{explanation.target}\n{explanation.target_probability:.1%}"
            rows[text] = overlay(frames, getattr(explanation, method))
    index = np.broadcast_to(clip.index, (len(rows), len(frames)))
    return encode_png(draw(list(rows), np.stack(list(rows.values())), index))


def _clip_size(shape: tuple[int, ...]) -> str:
    frames, height, width, _ = shape
    return f"{frames} frames of {height} x {width} pixels"


def require_layer(layer: int | None, count: int) -> None:
    """Raises ConfigError unless `layer` is None or one of the `count` layers of a temporal encoder."""
    require(
        layer is None or count > 0,
        f"--layer={layer} selects a layer of a temporal encoder, which only VTN has. Leave out --layer.",
    )
    require(layer is None or 1 <= layer <= count, f"--layer={layer} must be between 1 and {count}, the last layer.")


class Explainer:
    """Explains the predictions of a model. It is compiled at the first clip.

    Args:
        graph: the structure of the model for `nnx.merge`.
        parameters: the parameters as a tree of arrays.
        classes: the class names by label.
        scoring: how videos are labelled, see `vidformers.training.scoring`.
    """

    def __init__(self, graph, parameters, classes: Sequence[str], scoring=SINGLE_LABEL):
        self._graph, self._parameters, self._classes, self._scoring = graph, parameters, classes, scoring
        self._programs: dict = {}

    def require_class(self, target: str | None) -> None:
        """Raises ConfigError unless `target` is the name of a class or None."""
        names = ", ".join(self._classes[:8]) + (", ..." if len(self._classes) > 8 else "")
        require(target is None or target in self._classes, f"--target={target} is not one of the classes {names}.")

    def require_layer(self, layer: int | None) -> None:
        """Raises ConfigError unless `layer` is None or the number of a layer of the temporal encoder."""
        readout = nnx.merge(self._graph, self._parameters).readout
        is_temporal = isinstance(readout, TemporalEncoder)
        require_layer(layer, sum(stage.depth for stage in readout.stages) if is_temporal else 0)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """The shape (t y x 3) of the clips that the model takes."""
        return nnx.merge(self._graph, self._parameters).shape

    def require_clips_of(self, shape: tuple[int, ...], name: str) -> None:
        """Raises ConfigError unless the model takes clips of this shape (t y x 3). Messages call the model `name`."""
        own = self.clip_shape
        require(
            own == shape,
            f"{name} takes clips of {_clip_size(own)}, but the clips of this run are {_clip_size(shape)}. Give a model "
            "that takes the same clips.",
        )

    def __call__(self, clip: Clip, target: str | None = None) -> Explanation:
        """Explains a clip for the class `target`, or for the likeliest class.

        Raises:
            ConfigError: there is no such class, or the attention weights do not fit in memory.
        """
        self.require_class(target)
        label = None if target is None else np.array([self._classes.index(target)])
        arrays = (clip.frames[None], clip.index[None], label)
        result = jax.device_get(self._program(arrays)(self._parameters, *arrays))
        scores = self._scoring.average_views(result.logits[None], "logits")[0]
        probabilities = self._scoring.probabilities(np.asarray(scores, np.float64))
        return Explanation(
            clip,
            self._classes[result.target[0]],
            float(probabilities[result.target[0]]),
            probabilities,
            result.rollout[0],
            result.gradient[0],
            None if result.heads is None else result.heads[0],
            None if result.frames is None else result.frames[0, -1].mean(axis=0),
            None if result.frames is None else result.frames[0],
            {name: share[:, 0].tolist() for name, share in result.dictionary_shares.items()},
        )

    def _program(self, arrays):
        """Returns the compiled program for arrays of these shapes."""
        shapes = tuple(x if x is None else (x.shape, x.dtype) for x in arrays)
        if shapes not in self._programs:

            def run(parameters, *clip):
                return relevance(nnx.merge(self._graph, parameters), *clip)

            compiled = jax.jit(run).lower(self._parameters, *arrays).compile()
            needed, available = program_bytes(compiled) / 2**30, bytes_available() / 2**30
            require(
                needed <= available,
                f"An explanation needs {needed:.1f} GiB to hold all attention weights, but the device has "
                f"{available:.1f} GiB. Use fewer frames: reduce eval.frames or data.frames.",
            )
            self._programs[shapes] = compiled
        return self._programs[shapes]
