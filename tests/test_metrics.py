"""metrics.jsonl and TensorBoard files: rows, resuming, cut lines, warnings."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from skd_jax import metrics


def write(folder, rows, first_step=0):
    writer = metrics.MetricsWriter(folder, first_step)
    for step, split, values in rows:
        writer.write(step, split, values)
    writer.close()


def test_rows_are_read_back(tmp_path):
    write(tmp_path, [(1, "train", {"loss": 2.5, "top1": 0.25}), (2, "validation", {"loss": 1})])
    assert metrics.read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "split": "train", "loss": 2.5, "top1": 0.25},
        {"step": 2, "split": "validation", "loss": 1.0},
    ]


def test_a_row_is_on_disk_at_once(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(1, "train", {"loss": 2.5})
    assert len(metrics.read_rows(tmp_path / "metrics.jsonl")) == 1
    writer.close()


def test_resuming_drops_the_steps_that_come_again(tmp_path):
    write(tmp_path, [(step, "train", {"loss": step}) for step in (10, 20, 30, 40)])
    write(tmp_path, [(30, "train", {"loss": -1.0})], first_step=20)
    rows = metrics.read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 10), (20, 20), (30, -1)]
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_file(tmp_path):
    write(tmp_path, [(1, "train", {"loss": 1.0})])
    write(tmp_path, [], first_step=0)
    assert metrics.read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", [1, 9, 25])
def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path, cut):
    write(tmp_path, [(1, "train", {"loss": 1.0}), (2, "train", {"loss": 2.0})])
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    last = text.splitlines()[-1]
    path.write_text(text[: len(text) - 1 - len(last) + cut])
    assert [row["step"] for row in metrics.read_rows(path)] == [1]
    write(tmp_path, [(2, "train", {"loss": 3.0})], first_step=1)
    assert [row["loss"] for row in metrics.read_rows(path)] == [1.0, 3.0]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_values_that_are_not_finite_are_null(tmp_path):
    write(tmp_path, [(1, "train", {"loss": float("nan"), "other": float("inf")})])
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "split": "train",
        "loss": None,
        "other": None,
    }


def test_no_file_has_no_rows(tmp_path):
    assert metrics.read_rows(tmp_path / "metrics.jsonl") == []


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, active=False)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_the_scalars(tmp_path):
    write(tmp_path, [(1, "train", {"loss": 2.5, "top1": 0.25}), (7, "validation", {"loss": 0.5})])
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            found[value.tag, event.step] = value.tensor.float_val[0]
    assert found == {("train/loss", 1): 2.5, ("train/top1", 1): 0.25, ("validation/loss", 7): 0.5}


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path):
    for first_step, value in ((0, 1.0), (2, 2.0)):  # killed after step 4, its last checkpoint at 2
        rows = [(step, "train", {"loss": value}) for step in range(first_step + 1, 5)]
        write(tmp_path, rows, first_step)
        time.sleep(1.1)  # the files' names, which TensorBoard orders them by, count seconds
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    points = [(p.step, p.value) for p in shown.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


@pytest.mark.parametrize("spread,warns", [(0.05, True), (0.0, True), (0.5, False), (1.0, False)])
def test_collapse_warning(spread, warns):
    warning = metrics.collapse_warning({"embedding_std": spread, "loss": 1.0})
    assert (warning is not None) == warns
    if warns:
        assert f"{spread:.3f} of 1/sqrt(D)" in warning and "method.lambda_sim" in warning


def test_collapse_warning_of_the_projection_alone():
    warning = metrics.collapse_warning({"embedding_std": 0.9, "projection_std": 0.02})
    assert "the projection collapses" in warning


@pytest.mark.parametrize("values", [{}, {"embedding_std": float("nan")}])
def test_no_collapse_warning_without_a_spread(values):
    assert metrics.collapse_warning(values) is None
