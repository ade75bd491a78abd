"""Checkpoints: what is kept, what is read back, and what is said when it cannot be."""

import errno
import os
import shutil
import subprocess
import sys

import flax.struct
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from skd_jax import checkpoint
from skd_jax.checkpoint import Checkpoints
from skd_jax.errors import UserError


@flax.struct.dataclass
class State:
    step: np.ndarray
    params: dict
    batch_stats: dict
    opt_state: tuple
    ema: dict | None


def state(value=0.0, classes=3):
    params = {
        "model": {
            "fc": {
                "kernel": np.full((2, classes), value, np.float32),
                "bias": np.arange(classes, dtype=np.float32),
            },
            "bn": {"scale": np.array([1.5, -0.0], np.float32)},
        }
    }
    stats = {"model": {"bn": {"mean": np.array([np.pi, 1e-30], np.float32)}}, "projector": {}}
    opt_state = jax.tree.map(np.asarray, optax.sgd(0.1, momentum=0.9).init(params))
    return State(np.int32(value), params, stats, opt_state, None)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def checkpoints(tmp_path, lines):
    opened = Checkpoints(tmp_path, log=lines.append)
    yield opened
    opened.close()


def damage(folder):
    """Cuts every file of a checkpoint in half."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_round_trip_bit_for_bit(checkpoints, tmp_path):
    saved = state(3)
    checkpoints.save(3, saved)
    checkpoints.wait()
    template = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, saved))
    step, flat = Checkpoints(tmp_path).restore_latest()
    assert step == 3
    restored = checkpoint.unflatten(flat, template)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert isinstance(got, np.ndarray) and got.dtype == want.dtype
        assert got.tobytes() == want.tobytes()


def test_nothing_saved_yet(checkpoints):
    assert checkpoints.restore_latest() is None
    assert checkpoints.steps() == [] and checkpoints.best() is None


def test_the_last_two_and_the_best_are_kept(checkpoints, tmp_path):
    for step, top1 in enumerate([0.2, 0.6, None, 0.5, 0.6, 0.3, None], start=1):
        metrics = None if top1 is None else {"top1": top1, "loss": 1.0 if step < 5 else 2.0}
        checkpoints.save(step, state(step), metrics)
    checkpoints.wait()
    again = Checkpoints(tmp_path)
    assert again.steps() == [2, 6, 7]
    assert again.best() == (2, {"top1": 0.6, "loss": 1.0})  # the tie went to the lower loss
    assert again.restore(2)["params.model.fc.kernel"][0, 0] == 2
    assert again.restore_latest()[0] == 7


def test_a_lower_loss_breaks_a_tie(checkpoints):
    for step, loss in [(1, 2.0), (2, 1.0), (3, 3.0)]:
        checkpoints.save(step, state(step), {"top1": 0.5, "loss": loss})
    checkpoints.wait()
    assert checkpoints.best()[0] == 2


def test_a_step_saved_twice_is_left_alone(checkpoints):
    checkpoints.save(1, state(1))
    checkpoints.wait()
    checkpoints.save(1, state(9))
    checkpoints.wait()
    assert checkpoints.restore(1)["params.model.fc.kernel"][0, 0] == 1


@pytest.mark.parametrize("how", ["cut", "emptied"])
def test_an_unreadable_newest_one_falls_back(checkpoints, tmp_path, lines, how):
    for step in (1, 2):
        checkpoints.save(step, state(step), {"top1": 0.1 * step, "loss": 1.0})
    checkpoints.wait()
    if how == "cut":
        damage(tmp_path / "2")
    else:
        shutil.rmtree(tmp_path / "2")
        (tmp_path / "2").mkdir()
    opened = Checkpoints(tmp_path, log=lines.append)
    step, flat = opened.restore_latest()
    assert step == 1 and flat["params.model.fc.kernel"][0, 0] == 1
    line = lines.pop()
    assert f"{tmp_path}/2 is unreadable" in line and "falling back to the one before" in line
    # The number is free again, and training can go on from there.
    assert (tmp_path / "unreadable-2").is_dir()
    opened.save(2, state(5), {"top1": 0.0, "loss": 1.0})
    opened.close()
    assert Checkpoints(tmp_path).restore_latest()[1]["params.model.fc.kernel"][0, 0] == 5


def test_an_unreadable_best_one_falls_back_to_the_next_best(checkpoints, tmp_path, lines):
    for step, top1 in ((1, 0.3), (2, 0.9), (3, 0.5)):
        checkpoints.save(step, state(step), {"top1": top1, "loss": 1.0})
    checkpoints.wait()
    damage(tmp_path / "2" / "default")
    step, flat, values = Checkpoints(tmp_path, keep=3, log=lines.append).restore_best()
    assert step == 3 and flat["params.model.fc.kernel"][0, 0] == 3 and values["top1"] == 0.5
    assert f"{tmp_path}/2 is unreadable" in lines[-1] and "the next best" in lines[-1]
    assert (tmp_path / "2").is_dir()


def test_damaged_metrics_leave_the_state_readable(checkpoints, tmp_path, lines):
    for step in (1, 2):
        checkpoints.save(step, state(step), {"top1": 0.1 * step, "loss": 1.0})
    checkpoints.wait()
    (tmp_path / "2" / "metrics" / "metrics").write_text('{"top1": 0.2,')
    opened = Checkpoints(tmp_path, log=lines.append)
    assert opened.best()[0] == 1
    assert opened.restore_latest()[0] == 2
    (line,) = lines
    assert "2/metrics/metrics is unreadable" in line and "counts as not evaluated" in line
    opened.save(3, state(3), {"top1": 0.05, "loss": 1.0})
    opened.close()
    assert Checkpoints(tmp_path, log=lines.append).steps() == [1, 2, 3]


def test_no_readable_one_is_an_error_every_time(checkpoints, tmp_path):
    """Were the broken ones put away, the same command would silently train from the start."""
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    damage(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\] can be read"):
            Checkpoints(tmp_path, log=lambda line: None).restore_latest()


def test_restoring_an_unreadable_one_names_the_others(checkpoints, tmp_path):
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    damage(tmp_path / "2")
    with pytest.raises(UserError, match=r"/2: unreadable checkpoint .*; others there: \[1\]"):
        Checkpoints(tmp_path).restore(2)


def test_a_full_disk_is_named_at_the_save(checkpoints, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(
        UserError, match="cannot save a checkpoint to .*: the disk is full.*make room"
    ):
        checkpoints.save(1, state())


_LIMITED = """
import resource, signal, sys
import numpy as np
from skd_jax import checkpoint, errors

checkpoints = checkpoint.Checkpoints(sys.argv[1])
checkpoints.save(1, {"params": {"a": np.arange(10)}})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).normal(size=100_000)  # not to be compressed
checkpoints.save(2, {"params": {"a": noise}})
for attempt in (checkpoints.wait, checkpoints.close):
    try:
        attempt()
    except errors.UserError as error:
        print(error)
"""


def test_a_write_that_the_kernel_refuses_in_the_background(tmp_path):
    """Another thread writes; the failure comes out where the main one waits, in one line."""
    run = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    first, *_ = run.stdout.splitlines()
    assert first.startswith(f"cannot save a checkpoint to {tmp_path}: ") and "too large" in first
    assert "Earlier checkpoints are whole" in first
    assert "Traceback" not in run.stderr + run.stdout
    step, flat = Checkpoints(tmp_path).restore_latest()
    assert step == 1
    np.testing.assert_array_equal(flat["params.a"], np.arange(10))


def test_tensorstore_names_a_full_disk_in_its_text(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: write failed [No space left on device]")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "wait_until_finished", full)
        with pytest.raises(UserError, match="the disk is full"):
            checkpoints.wait()
        with pytest.raises(UserError, match="the disk is full"):
            checkpoints.close()
    checkpoints.close()


def test_a_folder_that_cannot_be_written(checkpoints, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    monkeypatch.setattr(ocp.CheckpointManager, "save", refused)
    with pytest.raises(
        UserError, match="cannot save a checkpoint to .*Permission denied.*can be written"
    ) as e:
        checkpoints.save(1, state())
    assert "make room" not in str(e.value)


def test_a_mistake_is_no_fault_of_the_disk(checkpoints, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "save", lambda *_: None)  # called with keywords
    with pytest.raises(TypeError):
        checkpoints.save(1, state())


def test_flat_names():
    flat = checkpoint.flatten(state())
    assert "params.model.fc.kernel" in flat and "opt_state.0.trace.model.fc.kernel" in flat
    assert not any(name.startswith("ema") for name in flat)


def test_another_number_of_classes_is_named():
    flat = checkpoint.flatten(state(classes=3))
    with pytest.raises(UserError) as error:
        checkpoint.unflatten(flat, state(classes=5), "run/checkpoints/7")
    text = str(error.value)
    assert (
        "checkpoint run/checkpoints/7 does not fit the model (another number of classes?)" in text
    )
    assert "params.model.fc.kernel is (2, 3), wanted (2, 5)" in text


def test_missing_and_extra_parameters_are_named():
    flat = checkpoint.flatten(state())
    flat["params.model.conv"] = flat.pop("params.model.bn.scale")
    with pytest.raises(UserError) as error:
        checkpoint.unflatten(flat, state())
    text = str(error.value)
    assert "params.model.bn.scale is missing" in text
    assert "params.model.conv is not part of this model" in text
    assert "number of classes" not in text


def test_a_long_list_is_cut():
    with pytest.raises(UserError, match=r" and \d+ more\. Use"):
        checkpoint.unflatten({}, state())


def test_variables_raw_and_averaged():
    raw = state(1)
    ema = {"params": state(2).params, "batch_stats": raw.batch_stats}
    flat = checkpoint.flatten(raw.replace(ema=ema))
    got = checkpoint.variables(flat)
    np.testing.assert_array_equal(got["params"]["model"]["fc"]["kernel"], np.ones((2, 3)))
    assert got["batch_stats"]["model"]["bn"]["mean"][0] == np.float32(np.pi)
    averaged = checkpoint.variables(flat, ema=True)
    np.testing.assert_array_equal(averaged["params"]["model"]["fc"]["kernel"], 2 * np.ones((2, 3)))
    assert averaged.keys() == got.keys() == {"params", "batch_stats"}
    assert checkpoint.variables(checkpoint.flatten(raw), ema=True)["params"] == {}
