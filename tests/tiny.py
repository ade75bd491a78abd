"""A run so small that a test can afford it: the demo with few, short, small videos."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

_VALUES = {
    "data.synthetic.train_per_class": 6,
    "data.synthetic.validation_per_class": 1,
    "data.synthetic.test_per_class": 2,
    "data.synthetic.frames": 10,
    "data.synthetic.size": 32,
    "data.frame_size": 20,
    "data.workers": 1,
    "augment.crop": 16,
    "clips.frames": 4,
    "model.width": 0.0625,
    "method.projector_out": 16,
    "method.predictor_hidden": 32,
    "optim.warmup": "1 steps",
    "train.batch_size": 8,
    "train.duration": "60 steps",
    "train.eval_every": "20 steps",
    "train.checkpoint_every": "4 steps",
    "train.log_every": 4,
    "eval.clips": 2,
    "eval.batch_size": 8,
}


def config(folder: Path, **changes) -> dict:
    """The tiny demo's config as a plain dictionary, its data below `folder`.

    Args:
      folder: of videos and prepared data.
      **changes: dotted keys with "__" for the dot, such as train__duration="10 steps".
    """
    from configs import demo

    tree = demo.get_config()
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    paths = {"data.root": str(folder / "videos"), "data.prepared": str(folder / "prepared")}
    tree.update_from_flattened_dict(_VALUES | paths | changes)
    return tree.to_dict()


def arguments(folder: Path, method: str = "skd_srl", **changes) -> list[str]:
    """The same as command-line arguments, for any method."""
    paths = {"data.root": folder / "videos", "data.prepared": folder / "prepared"}
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    values = {**_VALUES, **paths, **changes}
    if method != "skd_srl":
        values = {key: value for key, value in values.items() if not key.startswith("method.")}
    return [f"--config=configs/demo.py:{method}", *(f"--config.{k}={v}" for k, v in values.items())]


def start(*args: str, **environment: str) -> subprocess.Popen:
    """Starts main.py as a user does; standard error joins standard output."""
    return subprocess.Popen(
        [sys.executable, "main.py", *map(str, args)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*args: str, **environment: str) -> tuple[int, str]:
    """Runs main.py to its end: (exit status, all it printed)."""
    process = start(*args, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def read(path: Path) -> dict:
    return json.loads(path.read_text())
