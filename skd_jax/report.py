"""Pictures of a run: learning curves, confusion matrix and film strips, as PNG files.

Drawn on Matplotlib's own figure objects, so that neither a display nor pyplot's global state is
needed or touched. Paths may lie in object stores (`etils.epath`).
"""

import io
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, which colour-blind readers tell apart.
_SPLIT_COLOURS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
_OTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--")
_COLOURS = colormaps["Blues"].with_extremes(bad="0.8")  # bad: masked, here rows without examples

# (title, label of the y axis, {metric: its name in the legend}); panels without data are left out.
_PANELS = (
    ("Loss", "loss", {"loss": ""}),
    ("Top-1 accuracy", "top-1", {"top1": ""}),
    (
        "Agreement of the two views",
        "share, cosine",
        {"view_agreement": "same top-1", "view_cosine": "cosine"},
    ),
    ("Spread of the embedding", "std of a feature", {"embedding_std": ""}),
    ("Rank of the embedding", "effective rank", {"embedding_rank": ""}),
)
_PERCENT = ("Top-1 accuracy",)

_MOST_NAMES = 40  # along a side of the confusion matrix; of more classes every n-th is named
_MOST_NUMBERS = 16  # classes up to which each cell shows its percentage


def plot_curves(rows: Sequence[Mapping], path: str | os.PathLike, title: str = "") -> None:
    """Draws loss, accuracy and, where measured, view and embedding statistics against the step.

    Args:
      rows: `{"step": int, "split": str, "loss": float, "top1": float in [0, 1], ...}` each; also
        drawn: "view_agreement", "view_cosine", "embedding_std", "embedding_rank". Any may lack.
      path: where the PNG goes.
      title: above all panels.
    """
    splits = list(dict.fromkeys(row["split"] for row in rows))
    others = [split for split in splits if split not in _SPLIT_COLOURS]
    colours = _SPLIT_COLOURS | dict(
        zip(others, _OTHER_COLOURS * (1 + len(others) // len(_OTHER_COLOURS)), strict=False)
    )
    panels = []
    for heading, unit, metrics in _PANELS:
        lines = [
            (split, name, style, points)
            for split in splits
            for (metric, name), style in zip(metrics.items(), _LINES, strict=False)
            if len(points := _points(rows, split, metric))
        ]
        if lines:
            panels.append((heading, unit, lines))

    columns = min(3, max(1, len(panels)))
    height = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.4 * columns, 3.3 * height), layout="constrained")
    for number, (heading, unit, lines) in enumerate(panels):
        axes = figure.add_subplot(height, columns, number + 1)
        for split, name, style, points in lines:
            label = f"{split}, {name}" if name else split
            _draw_line(axes, points, colours[split], style, label)
        axes.set(title=heading, xlabel="step", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if heading in _PERCENT:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(frameon=False, fontsize="small")
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", ha="center", va="center")
    if title:
        figure.suptitle(title)
    _save(figure, path)


def plot_confusion(
    matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike, title: str = ""
) -> None:
    """Draws a confusion matrix, each row divided by its sum: what a true class was taken for.

    Rows without examples are left grey. Up to 40 classes are named; of more, every n-th.

    Args:
      matrix: (K, K) counts, rows true and columns predicted classes.
      class_names: K names.
      path: where the PNG goes.
      title: should name the split that was counted.
    """
    matrix = np.asarray(matrix)
    count = len(class_names)
    if matrix.shape != (count, count):
        raise ValueError(f"a confusion matrix of {count} classes cannot have shape {matrix.shape}")
    total = matrix.sum(axis=1, keepdims=True)
    share = np.ma.masked_where(
        np.broadcast_to(total == 0, matrix.shape), matrix / np.maximum(total, 1)
    )

    many = count > _MOST_NAMES
    side = 9.5 if many else 2.0 + max(2.2, 0.34 * min(count, 20) + 0.13 * max(count - 20, 0))
    figure = Figure(figsize=(side + 1.2, side), layout="compressed")
    axes = figure.add_subplot()
    # Among hundreds of classes the mistakes are thinly spread: the square root lifts them.
    norm = PowerNorm(0.5 if many else 1.0, vmin=0, vmax=1)
    image = axes.imshow(share, cmap=_COLOURS, norm=norm)
    step = math.ceil(count / _MOST_NAMES)
    ticks = np.arange(0, count, step)
    size = 6 if count > 24 else 8
    names = [class_names[tick] for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set_xlabel("predicted class" + (f" (1 in {step} named)" if step > 1 else ""))
    axes.set_ylabel("true class" + (f" (1 in {step} named)" if step > 1 else ""))
    if title:
        axes.set_title(title)
    if count <= _MOST_NUMBERS:
        for i, j in np.argwhere(matrix > 0):
            colour = "white" if share[i, j] > 0.5 else "black"
            text = f"{100 * share[i, j]:.0f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1.0))
    bar.set_label("share of the true class" + (", square-root colour scale" if many else ""))
    _save(figure, path)


def film_strip(
    videos: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    columns: int = 8,
    stride: int = 2,
    scale: int = 2,
) -> None:
    """Draws frames 0, stride, 2 stride, ... of each video as one row, with its name before it.

    Args:
      videos: name to uint8 (T, H, W, 3), RGB, H and W the same for all. Shorter ones leave a gap.
      path: where the PNG goes.
      columns: frames of a row at most.
      stride: frames from one drawn to the next.
      scale: pixels of the picture to one of the video, along each side.
    """
    gap, dpi = 4, 100
    rows = []
    for video in videos.values():
        frames = np.repeat(np.repeat(video[::stride][:columns], scale, axis=1), scale, axis=2)
        padding = [(0, columns - len(frames)), (0, gap), (0, gap), (0, 0)]
        frames = np.pad(frames, padding, constant_values=255)
        rows.append(np.concatenate(list(frames), axis=1))
    picture = np.concatenate(rows)[:-gap, :-gap]
    # Names stand left of the picture, whose pixels are drawn one to one.
    left = 20 + 7 * max(len(name) for name in videos)
    top = 28
    height, width = picture.shape[0] + top, picture.shape[1] + left
    # Half a pixel more, since the canvas rounds down what is left of the division.
    figure = Figure(figsize=((width + 0.5) / dpi, (height + 0.5) / dpi), dpi=dpi)
    figure.figimage(picture, xo=left, yo=0)
    row_height = len(rows[0])
    for number, name in enumerate(videos):
        y = 1 - (top + row_height * (number + 0.5)) / height
        words = name.replace("_", " ")
        figure.text((left - 10) / width, y, words, ha="right", va="center", fontsize=10)
    note = "time \N{RIGHTWARDS ARROW}" + (
        f"  (every {_ordinal(stride)} frame)" if stride > 1 else ""
    )
    figure.text(left / width, 1 - top / 2 / height, note, ha="left", va="center", fontsize=10)
    _save(figure, path, dpi=dpi)


def _points(rows: Sequence[Mapping], split: str, metric: str) -> np.ndarray:
    """(N, 2) float64 steps and values of the rows that have the metric, if any is finite."""
    points = [
        (row["step"], row[metric])
        for row in rows
        if row["split"] == split and row.get(metric) is not None
    ]
    points = np.array(points, np.float64).reshape(-1, 2)
    return points if np.isfinite(points).all(axis=1).any() else points[:0]


def _draw_line(axes, points: np.ndarray, colour: str, style: str, label: str) -> None:
    """Few points are marked; many are drawn pale, under their running mean."""
    x, y = points.T
    window = len(points) // 40
    if window > 1:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.25)
        # Windows shrink at both ends, so that the line neither lags nor ends early.
        sums = np.concatenate([[0], np.cumsum(np.nan_to_num(y))])
        counts = np.concatenate([[0], np.cumsum(np.isfinite(y))])
        first = np.maximum(np.arange(len(y)) - window, 0)
        last = np.minimum(np.arange(len(y)) + window + 1, len(y))
        with np.errstate(invalid="ignore"):
            y = (sums[last] - sums[first]) / (counts[last] - counts[first])
    marker = "o" if len(points) <= 40 else None
    axes.plot(x, y, style, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=label)


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _save(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> None:
    """Writes a PNG beside `path` and renames it, so that no half picture stands there."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)
