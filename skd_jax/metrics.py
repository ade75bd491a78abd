"""Metrics on disk (metrics.jsonl, TensorBoard) and what they warn of."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from skd_jax import quiet

# Directions spread evenly over the sphere have a spread of 1, features after a ReLU about 0.5, a
# constant 0: below this the views agree because there is nothing left to tell apart.
COLLAPSED_STD = 0.1


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and scalars to TensorBoard event files.

    Args:
      folder: the workdir.
      first_step: rows after this step are dropped: a resumed run writes them again.
      active: False writes nothing (all processes but the first).
    """

    def __init__(self, folder: Path, first_step: int = 0, active: bool = True):
        self._active = active
        if not active:
            return
        path = Path(folder) / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= first_step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(part, path)
        self._file = path.open("a")
        with quiet.standard_error():  # it imports TensorFlow where that is installed
            self._events = EventFileWriter(str(Path(folder) / "tensorboard"))
        # Tells TensorBoard to drop what an interrupted run wrote of the steps that come again.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.add_event(event_pb2.Event(step=first_step + 1, session_log=start))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One row: {"step", "split", **values}; values that are not finite are stored as null."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **row}) + "\n")
        self._file.flush()
        summary = summary_pb2.Summary(
            value=[
                summary_pb2.Summary.Value(tag=f"{split}/{name}", simple_value=value)
                for name, value in values.items()
            ]
        )
        self._events.add_event(event_pb2.Event(step=step, summary=summary))

    def close(self) -> None:
        """Writes what is buffered."""
        if self._active:
            self._file.close()
            self._events.close()


def read_rows(path: Path) -> list[dict]:
    """Rows of a metrics file, oldest first; none if it is absent. A line cut by a kill is left out."""
    rows = []
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            with contextlib.suppress(ValueError, AttributeError):
                row = json.loads(line)
                if {"step", "split"} <= row.keys():
                    rows.append(row)
    return rows


def collapse_warning(values: Mapping[str, float]) -> str | None:
    """A line of warning if embedding or projection has collapsed to a point, else None."""
    for name in ("embedding", "projection"):
        spread = values.get(f"{name}_std")
        if spread is not None and math.isfinite(spread) and spread < COLLAPSED_STD:
            return (
                f"warning: the {name} collapses: the spread of its features is {spread:.3f} of "
                "1/sqrt(D) (a constant has 0, even directions 1). Keep the predictor and the "
                "stop-gradient, or lower method.lambda_sim or the learning rate"
            )
    return None
