"""One run of `benchmarks.accuracy`: trains in its workdir, and measures what it left.

    python -m benchmarks.accuracy_run SPEC.json

A process of its own, so that it can be killed and started again: it goes on from its last checkpoint. With
`data.in_memory=True` the videos' frames are decoded once, and TensorFlow need not be there.
"""

import importlib.util
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from benchmarks.accuracy_table import view_values
from skd_jax import (
    augment,
    classifier,
    datasets,
    memory,
    metrics,
    modes,
    settings,
    stages,
    workdir,
)
from skd_jax.data import prepared
from skd_jax.errors import UserError
from skd_jax.methods.base import network

MEASURED, COMMITS = "measured.json", "commits.json"
# What a run executes; results, prepared data and documents may change meanwhile.
_CODE = ("benchmarks", "configs", "main.py", "skd_jax")
_REPOSITORY = Path(__file__).resolve().parents[1]
_UNKNOWN = {"commit": "", "uncommitted": None}
_LATE = 5  # last evaluations of which the mean is taken


def load_config(path: str, method: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a file for a method, with some values changed.

    Args:
      path: such as configs/ucf101_small.py.
      method: what would stand behind the colon.
      overrides: dotted keys; lists stand for tuples.
    """
    spec = importlib.util.spec_from_file_location("accuracy_config", path)
    if spec is None or not Path(path).is_file():
        raise UserError(f"there is no config file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(method)
    config.lock()  # as on the command line, a key that is not there is a mistake
    try:
        config.update_from_flattened_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}:{method}: {str(error).splitlines()[0]}") from None
    return config.to_dict()


def run(spec: Mapping[str, Any], log=print) -> dict[str, Any] | None:
    """Trains and measures; what is in `measured.json` already is not done again.

    Args:
      spec: "config_file", "method", "overrides", "workdir", "settings", which the config must come to, and
        "test": whether the test split may be used; without it only validation is reported.
      log: takes one line of text.

    Returns:
      What the row of the run gets from it; None if a SIGTERM stopped the training.

    Raises:
      UserError: a config file or a default has changed since the run was planned, or what is measured
        there is of other settings.
    """
    folder = Path(spec["workdir"])
    path = folder / MEASURED
    measured = path.is_file()
    result = _measured(path, spec) if measured else _train(folder, spec, log)
    if result is None or not spec["test"] or "test_top1" in result:
        return result
    if measured:  # by a sweep, which leaves the test videos alone, or killed in between
        result["commits"] = note_commit(folder, resumed=True)
    result |= test_of(classifier.load(folder, log))
    workdir.write_json(path, result)
    return result


def _measured(path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    result = json.loads(path.read_text())
    if changed := _changed(result.get("settings", {}), spec["settings"]):
        raise UserError(f"{path.parent} is of another config ({changed}); take another --runs")
    return result


def _train(folder: Path, spec: Mapping[str, Any], log) -> dict[str, Any] | None:
    config = load_config(spec["config_file"], spec["method"], spec["overrides"])
    if changed := _changed(json.loads(json.dumps(workdir.flat(config))), spec["settings"]):
        raise UserError(
            f"the code has changed since this run was planned ({changed} would differ); start the "
            "command again"
        )
    resumed = workdir.has_checkpoint(folder) or bool(stages.folders(folder))
    commits = note_commit(folder, resumed)
    start = time.monotonic()
    if not modes.run_train(config, folder, log, frozenset(spec["overrides"]), test=False):
        return None
    wall = time.monotonic() - start
    trained = classifier.load(folder, log)
    rows = metrics.read_rows(folder / "metrics.jsonl")
    result = {
        **validation_of(rows),
        "losses": losses_of(rows),
        "checkpoint_step": trained.step,
        "parameters": trained.num_parameters,
        "wall_seconds": round(wall, 1),
        "resumed": resumed,
        **speed([*stages.folders(folder), folder]),
        **({"stages": stages.last_metrics(folder)} if stages.folders(folder) else {}),
        "device": device(),
        "versions": modes.versions(),
        "commits": commits,
        "settings": spec["settings"],
    }
    workdir.write_json(folder / MEASURED, result)
    return result


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Keys with different values in both; a key that came later was at its default."""
    return ", ".join(sorted(key for key in then.keys() & now.keys() if then[key] != now[key]))


def commit() -> dict[str, Any]:
    """Of the code that runs.

    Returns:
      {"commit": of the checkout, "uncommitted": whether the code differs from it, new files included};
      "" and None where that cannot be known, as outside a checkout.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=_REPOSITORY
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *_CODE)
        return {"commit": git("rev-parse", "HEAD"), "uncommitted": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return dict(_UNKNOWN)


def note_commit(folder: Path, resumed: bool) -> list[dict[str, Any]]:
    """The commits that a run has used, this process's included, which are kept in its workdir.

    Args:
      folder: the workdir.
      resumed: whether it goes on from what is there; where no commits were noted then, one unknown
        one stands for them.
    """
    path = folder / COMMITS
    before = json.loads(path.read_text()) if path.is_file() else [dict(_UNKNOWN)]
    commits = before if resumed else []
    if (now := commit()) not in commits:
        commits = [*commits, now]
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, commits)
    return commits


def device() -> str:
    """What it runs on: the processor and the cores that are used of it, or the accelerators."""
    if jax.default_backend() == "cpu":
        return machine.processor()
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def validation_of(rows: list[dict]) -> dict[str, Any]:
    """The validation accuracies among the rows of a metrics file.

    Returns:
      validation_top1 of the best evaluation, which the checkpoint is of, validation_late, the mean of
      the last five, and validation_curve [[step, top1], ...].
    """
    rows = [row for row in rows if row["split"] == "validation"]
    if not rows:
        raise UserError("the data set has no validation split to select a checkpoint by")
    # Where averaged weights were kept, they are what is selected and used.
    curve = [[row["step"], row.get("ema_top1", row["top1"])] for row in rows]
    tops = [top for _, top in curve]
    return {
        "validation_top1": max(tops),
        "validation_late": statistics.fmean(tops[-_LATE:]),
        "validation_curve": curve,
    }


def losses_of(rows: list[dict]) -> dict[str, float]:
    """The loss and its parts, each before its weight, at the last training steps of a metrics file."""
    training = [row for row in rows if row["split"] == "train"]
    last = training[-1] if training else {}
    return {key: value for key, value in last.items() if key.startswith("loss")}


def speed(folders: list[Path]) -> dict[str, float]:
    """Seconds of a training step: the median of each training, the mean over them by their steps."""
    seconds = steps = 0.0
    for folder in folders:
        rows = metrics.read_rows(folder / "metrics.jsonl")
        rates = [row["steps_per_second"] for row in rows if row.get("steps_per_second")]
        last = max((row["step"] for row in rows), default=0)
        if rates:
            seconds += last / statistics.median(rates)
            steps += last
    step = seconds / steps if steps else float("nan")
    return {"step_seconds": step, "steps_per_second": 1 / step}


def test_of(trained: classifier.Trained) -> dict[str, Any]:
    """The one look at the test split: accuracy as `--mode=evaluate` has it, and of each video.

    Returns:
      test_top1; test_correct {group: "0110..."}, a character for each video of the group in the order of
      their ids; test_views, of each video likewise, {name: {group: [value, ...]}} of
      `accuracy_table.view_values`; and their means under the names alone.
    """
    config = trained.config
    split = prepared.load_split(trained.data["prepared"], "test")
    evaluation = settings.evaluation(config)
    augmentation = settings.augmentation(config)

    @jax.jit
    def outputs(variables, clips, size):
        clips = augment.eval_clips(clips, size, augmentation)
        videos, views = clips.shape[:2]
        found = trained.method.model.apply(
            network(variables, "model"),
            clips.reshape(videos * views, *clips.shape[2:]),
            train=False,
        )
        return [
            x.reshape(videos, views, -1).astype(np.float32) for x in (found.logits, found.embedding)
        ]

    parts = []
    for batch in datasets.eval_batches(
        config, split, clips=evaluation.clips, crops=evaluation.crops
    ):
        mask = batch["mask"]
        found = outputs(trained.variables, batch["clips"], batch["size"])
        parts.append([np.asarray(x)[mask] for x in (*found, batch["label"], batch["index"])])
    logits, embedding, label, index = (np.concatenate(each) for each in zip(*parts, strict=True))
    assert np.array_equal(np.sort(index), np.arange(len(split)))
    probabilities = np.asarray(jax.nn.softmax(logits)).mean(1)
    right = probabilities.argmax(1) == label
    ids, views = [str(split.ids[i]) for i in index], view_values(logits, embedding)
    flags = by_group(ids, np.where(right, "1", "0"))
    return {
        "test_top1": float(right.mean()),
        "test_correct": {group: "".join(each) for group, each in flags.items()},
        "test_views": {name: by_group(ids, each.round(4)) for name, each in views.items()},
        **{name: float(each.mean()) for name, each in views.items()},
    }


def by_group(ids: list[str], values: np.ndarray) -> dict[str, list]:
    """{group: values in the order of the ids}.

    Args:
      ids: of N videos; the group of "Punch/v_Punch_g01_c02" is "v_Punch_g01", of others the id.
      values: (N,).
    """
    found: dict[str, list] = {}
    for name, value in sorted(zip(ids, values.tolist(), strict=True)):
        in_group = re.fullmatch(r"(?:.*/)?([^/]+_g\d+)_c\d+", name)
        found.setdefault(in_group.group(1) if in_group else name, []).append(value)
    return found


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    try:
        finished = run(spec)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if finished else 3)


if __name__ == "__main__":
    main()
