"""Training needs neither TensorFlow nor ml_collections: a process that cannot import them trains."""

import subprocess
import sys

import numpy as np

from skd_jax import checkpoint, metrics
from tests import blocked

_SCRIPT = """
import pathlib

import numpy as np
from skd_jax import augment, checkpoint, evaluate, losses, methods, metrics
from skd_jax import models, optim, parallel, step, train

VIDEOS = 4


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "clips": rng.integers(256, size=(VIDEOS, 2, 2, 12, 12, 3)).astype(np.uint8),
        "size": np.full((VIDEOS, 2, 2), 12, np.int32),
        "flip": np.zeros((VIDEOS, 2), bool),
        "label": rng.integers(3, size=VIDEOS).astype(np.int32),
        "index": np.arange(VIDEOS, dtype=np.int32),
        "key": rng.integers(2**32, size=(VIDEOS, 2)).astype(np.uint32),
    }


def endless(step):
    while True:
        yield batch(step)
        step += 1


def validation():
    yield batch(99) | {"mask": np.arange(VIDEOS) < 3}


model = models.create("r3d_10", num_classes=3, width=0.0625)
method = methods.create("skd_srl", model, projector_out=8, predictor_hidden=32)
settings = optim.OptimSettings()
finished = train.train(
    method,
    optim.optimiser(settings, 2, method.constant_lr),
    optim.schedule(settings, 2),
    augment.AugmentSettings(crop=8),
    train.LoopSettings(total_steps=2, clip_shape=(2, 8, 8, 3), log_every=1),
    train.Data(endless, validation, ids=lambda rows: [str(row) for row in rows]),
    pathlib.Path("."),
)
assert finished
"""


def test_the_loop_runs_where_tensorflow_is_not_installed(tmp_path):
    blocked.run(_SCRIPT, tmp_path)
    rows = metrics.read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [
        (1, "train"),
        (2, "train"),
        (2, "validation"),
    ]
    assert all(np.isfinite(row["loss"]) for row in rows)
    step, flat = checkpoint.Checkpoints(tmp_path / "checkpoints").restore_latest()
    assert step == 2 and flat["step"] == 2
    assert flat["params.model.fc.kernel"].shape == (32, 3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_modules_are_found_from_the_package_alone():
    """As the docstrings write it; in a process of its own, where nothing has imported them yet."""
    code = (
        "import sys, skd_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert 'models' in dir(skd_jax)\n"
        "assert 'r3d_18' in skd_jax.models.names() and 'skd_srl' in skd_jax.methods.names()\n"
        "assert skd_jax.losses.cross_entropy\n"
        "try:\n    skd_jax.modles\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'skd_jax' has no attribute 'modles'" in done.stdout
