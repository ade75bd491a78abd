"""The profile of a step: tiny measurements for real, and the table's sums."""

import functools

import pytest

from benchmarks import step_profile
from benchmarks.convolutions import Case
from skd_jax import models
from tests.fakes import quick_compilation  # noqa: F401  a fixture


def test_a_tiny_network_is_measured(monkeypatch, quick_compilation):  # noqa: F811
    monkeypatch.setattr(models, "create", functools.partial(models.create, width=0.125))
    found = step_profile.ours("r3d_10", frames=2, crop=16, batch=2, runs=1)
    assert set(found) == {*step_profile.PASSES, "step"}
    assert all(value > 0 for value in found.values())


def test_rest_is_what_the_step_takes_beyond_its_convolutions():
    ours = {"forward": 10.0, "towards clips": 20.0, "towards kernel": 30.0, "step": 75.0}
    peer = {"forward": 1.0, "towards clips": 2.0, "towards kernel": 3.0, "step": 5.0}
    text = step_profile.table({"skd_jax": ours, "PyTorch, default format": peer})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == ["", "skd_jax", "PyTorch, default format"]
    assert rows[2:] == [
        ["forward", "10", "1"],
        ["towards clips", "20", "2"],
        ["towards kernel", "30", "3"],
        ["rest", "15", "-1"],
        ["step", "75", "5"],
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_passes_in_torch(groups):
    torch = pytest.importorskip("torch", reason="PyTorch is no dependency of the tests")
    case = Case((1, 3, 5, 5, 4), (3, 3, 3, 4 // groups, 6), (1, 2, 2), (1, 1, 1), groups)
    found = step_profile._passes_in_torch(case, torch.channels_last_3d, 1)
    assert list(found) == list(step_profile.PASSES) and min(found.values()) > 0
    stem = case._replace(clips=(1, 3, 5, 5, 3), kernel=(3, 3, 3, 3, 6), groups=1)
    assert "towards clips" not in step_profile._passes_in_torch(stem, torch.contiguous_format, 1)
