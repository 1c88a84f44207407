"""The picture of a timeline: the probabilities of the classes over time, and the segments."""

import io
from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline.figures import drawn_texts, shortened
from vidformers.inference.timeline.segments import Segment, WindowPrediction, clock

_MAX_CLASSES = 12  # that are drawn: those with the highest probabilities
_MAX_COLUMNS = 1000
_COLUMNS_PER_WINDOW = 8  # so that the ends of windows, which lie between columns, are moved by at most a sixteenth
_MAX_TICKS = 10
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600)  # seconds between ticks


class Grid:
    """The highest probability of each class in each of at most 1000 equal parts of the time.

    Args:
        start, end: seconds, the time that is drawn.
        every: seconds from one window to the next.
        num_classes: the number of classes.
    """

    def __init__(self, start: float, end: float, every: float, num_classes: int):
        self.start, self.end, self._half = start, end, every / 2
        columns = int(np.clip(np.ceil(_COLUMNS_PER_WINDOW * (end - start) / every), 1, _MAX_COLUMNS))
        self.values = np.full((num_classes, columns), np.nan, np.float32)

    def add(self, window: WindowPrediction) -> None:
        """Adds a window, which stands for half of `every` on each side of its centre."""
        if window.probabilities is None:
            return
        scale = self.values.shape[1] / (self.end - self.start)
        begin = 0.0 if window.start <= self.start else window.centre - self._half - self.start
        stop = self.end - self.start if window.end >= self.end else window.centre + self._half - self.start
        first = int(round(begin * scale))
        columns = self.values[:, first : max(int(round(stop * scale)), first + 1)]
        np.fmax(columns, window.probabilities[:, None], out=columns)

    def most_likely(self) -> list[int]:
        """Returns the classes with the highest probabilities, in the order of their labels."""
        peaks = np.nan_to_num(self.values).max(axis=1)
        return sorted(np.argsort(-peaks, kind="stable")[:_MAX_CLASSES].tolist())


def draw_timeline(
    windows: Iterable[WindowPrediction],
    segments: Sequence[Segment],
    classes: tuple[str, ...],
    *,
    title: str,
    start: float,
    end: float,
    every: float,
) -> bytes:
    """Returns a PNG file with a row for each of the likeliest classes: its probability over time, and its segments.

    Args:
        windows: all windows, which are read once.
        segments: the segments.
        classes: class names by label.
        title: the title of the picture.
        start, end: seconds, the time that is drawn.
        every: seconds from one window to the next.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    grid = Grid(start, end, every, len(classes))
    for window in windows:
        grid.add(window)
    labels = grid.most_likely()
    with drawn_texts([title, *(classes[label] for label in labels)]) as texts:
        figure = Figure(figsize=(11, 1.6 + 0.34 * len(labels)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(
            grid.values[labels],
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            vmax=1,
            extent=(start, end, len(labels) - 0.5, -0.5),
        )
        rows = {classes[label]: row for row, label in enumerate(labels)}
        for segment in segments:
            if segment.name in rows:
                row = rows[segment.name]
                axes.plot([segment.start, segment.end], [row + 0.36] * 2, color="tab:orange", linewidth=3)
        axes.set_yticks(range(len(labels)), list(map(shortened, texts[1:])))
        axes.set_title(shortened(texts[0], 80))
        step = next((step for step in _STEPS if step >= (end - start) / _MAX_TICKS), (end - start) / _MAX_TICKS)
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(lambda seconds, _: clock(seconds, decimals=int(step < 1)))
        axes.set_xlabel("time; segments are orange" if segments else "time; there are no segments")
        figure.colorbar(image, ax=axes, label="probability")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
