"""Checkpoints of the whole training state, written in the background by Orbax.

A state is stored as one flat dictionary {dotted path: array}, so that a workdir can be read without
the code that made it and a mismatch can be named by its path. Orbax writes beside and renames: a
checkpoint that has its final name is complete.
"""

import errno
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from skd_jax import parallel
from skd_jax.data.files import is_remote
from skd_jax.errors import UserError

PyTree = Any

# Orbax logs at every save, and a failure with its stack; what a user must know is raised from here,
# or printed by the loop.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno > logging.ERROR or "orbax" not in record.pathname
)


def rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Key that orders checkpoints: validation top-1, and where it ties the lower loss."""
    return metrics["top1"], -metrics["loss"]


class Checkpoints:
    """The checkpoints of one workdir: the last few, and the best by validation.

    Args:
      directory: made if absent; local or an object store's URL.
      keep: number of latest checkpoints kept.
      keep_best: number of best ones kept beside them.
      log: takes one line of text.
    """

    def __init__(
        self,
        directory: Path | str,
        keep: int = 2,
        keep_best: int = 1,
        log: Callable[[str], None] = print,
    ):
        self._directory = str(directory)
        self._log = log
        parallel.on_first(self._drop_damaged_metrics)
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(n=keep),
                preservation_policy.BestN(
                    get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._directory if is_remote(self._directory) else Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, best_fn=rank, enable_async_checkpointing=True
            ),
            item_handlers=ocp.PyTreeCheckpointHandler(),
        )

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing; a step that is there already is left alone.

        Args:
          step: number of updates done.
          state: tree of NumPy arrays, equal in all processes.
          metrics: "top1" and "loss" on the validation split, if just evaluated.

        Raises:
          UserError: this or the save before it could not be written.
        """
        if step in self._manager.all_steps():
            return
        metrics = {name: float(value) for name, value in metrics.items()} if metrics else None
        with self._naming_failures():
            self._manager.save(step, args=ocp.args.PyTreeSave(flatten(state)), metrics=metrics)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Step and validation metrics of the best checkpoint, None if none was evaluated.

        Waits for a checkpoint under way, so that the answer does not depend on timing.
        """
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def restore(self, step: int) -> dict[str, np.ndarray]:
        """The flat state of one checkpoint.

        Raises:
          UserError: it cannot be read.
        """
        try:
            return self._read(step)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise UserError(
                f"{self._directory}/{step}: unreadable checkpoint ({_first_line(error)}); "
                f"others there: {[s for s in self.steps() if s != step] or 'none'}"
            ) from error

    def restore_latest(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """Step and flat state of the newest readable checkpoint; None where there is none.

        An unreadable one is named in the log, set aside as `unreadable-STEP`, and the one before it taken.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        if not steps:
            return None
        step, flat, unreadable = self._first_readable(steps[::-1], "the one before")
        # Only now: with nothing to fall back to, the next run must not start again unasked.
        for broken in unreadable:
            self._set_aside(broken)
        return step, flat

    def restore_best(self) -> tuple[int, dict[str, np.ndarray], dict[str, float] | None] | None:
        """Step, flat state and validation metrics of the best readable checkpoint.

        Without validation metrics it is the newest; None where there is no checkpoint. An unreadable one is
        named in the log, left where it is, and the next best taken.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        ranked = dict(self._ranked())
        order = [*ranked, *(step for step in self.steps()[::-1] if step not in ranked)]
        if not order:
            return None
        step, flat, _ = self._first_readable(order, "the next best")
        return step, flat, ranked.get(step)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._naming_failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self.wait()
        self._manager.close()

    def _ranked(self) -> list[tuple[int, dict[str, float]]]:
        self.wait()
        evaluated = [(step, self._manager.metrics(step)) for step in self.steps()]
        evaluated = [(step, dict(metrics)) for step, metrics in evaluated if metrics]
        return sorted(evaluated, key=lambda entry: (rank(entry[1]), entry[0]), reverse=True)

    def _first_readable(
        self, order: list[int], instead: str
    ) -> tuple[int, dict[str, np.ndarray], list[int]]:
        unreadable = []
        for step in order:
            try:
                return step, self._read(step), unreadable
            except Exception as error:  # noqa: BLE001  Orbax and TensorStore raise many kinds
                self._log(
                    f"warning: checkpoint {self._directory}/{step} is unreadable "
                    f"({_first_line(error)}); falling back to {instead}"
                )
                unreadable.append(step)
        raise UserError(
            f"{self._directory}: none of the checkpoints {sorted(order)} can be read; "
            "restore them from a backup, or start again with another --workdir"
        )

    def _read(self, step: int) -> dict[str, np.ndarray]:
        saved = self._manager.item_metadata(step)
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(saved.tree)
        )
        return self._manager.restore(step, args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    def _drop_damaged_metrics(self) -> None:
        # The manager reads all of them when it opens, and would fail at one cut by a crash of the
        # machine. Without them the state is still there, only not ranked.
        for path in epath.Path(self._directory).glob("*/metrics/metrics"):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                self._log(
                    f"warning: {path} is unreadable ({_first_line(error)}); "
                    "the checkpoint counts as not evaluated"
                )
                path.rename(path.with_name("metrics.unreadable"))

    def _set_aside(self, step: int) -> None:
        folder = epath.Path(self._directory) / str(step)
        parallel.on_first(lambda: folder.rename(folder.with_name(f"unreadable-{step}")))
        self._manager.reload()

    def _naming_failures(self):
        return _NamedFailures(self._directory)


_MISTAKES = (TypeError, AttributeError, AssertionError, UserError)  # none of the disk's


class _NamedFailures:
    """Turns what Orbax raises for a full or read-only disk into one clear line."""

    def __init__(self, directory: str):
        self._directory = directory

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if not isinstance(error, Exception) or isinstance(error, _MISTAKES):
            return False
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else _first_line(error)
        advice = "make room" if full else "see that this folder can be written to"
        raise UserError(
            f"cannot save a checkpoint to {self._directory}: {reason}. Earlier checkpoints are "
            f"whole; {advice} and run the same command again to go on from the last one"
        ) from error


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """{dotted path: NumPy array} of any tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_path(path): np.asarray(leaf) for path, leaf in leaves}


def unflatten(flat: Mapping[str, np.ndarray], template: PyTree, source: str = "") -> PyTree:
    """A tree like `template` with the arrays of `flat`.

    Args:
      flat: as `flatten` gives it.
      template: tree whose leaves have shapes and dtypes.
      source: name of the checkpoint, for the error.

    Raises:
      UserError: a path is missing or extra, or a shape differs; the message lists the first few.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    wanted = {_path(path): leaf for path, leaf in leaves}
    wrong = [
        f"{name} is {flat[name].shape}, wanted {np.shape(leaf)}"
        for name, leaf in wanted.items()
        if name in flat and flat[name].shape != np.shape(leaf)
    ]
    wrong += [f"{name} is missing" for name in wanted if name not in flat]
    wrong += [f"{name} is not part of this model" for name in flat if name not in wanted]
    if wrong:
        head = [line for line in wrong if ".fc." in line]
        hint = " (another number of classes?)" if head and len(head) == len(wrong) else ""
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"checkpoint {source} does not fit the model{hint}: {'; '.join(wrong[:4])}{more}. Use "
            "the config and data it was made with, or train in another --workdir"
        )
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in wanted])


def variables(flat: Mapping[str, np.ndarray], ema: bool = False) -> PyTree:
    """The networks' variables {collection: {network: tree}} out of a flat state.

    Args:
      flat: as `Checkpoints.restore` gives it.
      ema: the moving averages instead of the raw values.
    """
    nested: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in flat.items():
        keys = name.split(".")
        if ema and keys[0] == "ema":
            keys = keys[1:]
        elif ema or keys[0] not in nested:
            continue
        node = nested
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return nested


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # TensorStore names the same path several times over; the reason comes last.
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-135:]}"
