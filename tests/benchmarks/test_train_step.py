"""The benchmark of the step: its table by hand, tiny steps for real, PyTorch's side where it is installed."""

import functools
import json
import os
import threading
import types
from multiprocessing import Pipe

import numpy as np
import pytest
from flax import linen as nn

from benchmarks import convolutions, train_step
from skd_jax import models
from skd_jax.models import choices
from skd_jax.models.choices import Convolution, choose_lowering
from skd_jax.models.outputs import Outputs
from tests import blocked
from tests.fakes import quick_compilation  # noqa: F401  a fixture

TINY = {"frames": 2, "crop": 16, "batch": 4, "dtype": "float32"}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Leaves this process's memory and table of lowerings as they are."""
    monkeypatch.setattr(train_step.memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(choices, "TABLE", choices.TABLE)


# --- the table ---


def row(**changes):
    times = {
        "skd_jax": [0.5, 0.25, 0.5],
        "skd_jax, mixed": [0.5, 0.5, 1.0],
        "PyTorch": [1.0, 2.0, 2.0],
        "PyTorch, channels_last_3d": [1.0, 1.0, 0.5],
    }
    made = {
        "model": "r3d_18",
        "method": "skd_srl",
        **TINY,
        "clips": 8,
        "macs": 10**9,
        "times": times,
        "peak_flops": {"skd_jax": 480e9, "PyTorch": 96e9},
        "failed": {},
        "memory": {"skd_jax": (3 * 2**20, "peak"), "remat": (2**20, "peak")},
        "rows": {"skd_jax, mixed": ["chosen"]},
        "kept": {"skd_jax": 5 * 2**20},
        **changes,
    }
    return made | train_step.summary(made)


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        hidden = nn.Dense(7)(x.reshape(len(x), -1))
        return Outputs(nn.Dense(3)(hidden), hidden, {})


def test_kept_is_what_the_gradients_of_the_parameters_need():
    """The input of either layer in float32; the kernels are not counted."""
    assert train_step.kept_bytes(TwoLayers(), (2, 1, 1, 1, 5)) == 4 * (2 * 5 + 2 * 7)


def test_recomputation_keeps_less():
    clips = (2, 8, 32, 32, 3)
    plain, remat = (
        train_step.kept_bytes(models.create("r3d_18", 5, remat=remat), clips)
        for remat in (False, True)
    )
    assert remat < plain / 2


def test_ratios_are_those_of_the_rounds_to_the_quicker_peer():
    got = row()
    assert got["peer"] == "PyTorch, channels_last_3d"
    assert got["ratio"] == 0.5 and got["ratio_range"] == [0.25, 1.0]
    assert train_step.step_flops(got) == 48e9
    # In 0.5 s of 480, and in 1 s of 96.
    assert train_step.utilisation(got, "skd_jax") == pytest.approx(0.2)
    assert train_step.utilisation(got, "PyTorch, channels_last_3d") == pytest.approx(0.5)


def test_one_table_of_all_rows(capsys):
    alone = row(times={"skd_jax": [0.1]}, peak_flops={}, model="mc3_18")
    only_memory = row(times={}, peak_flops={}, memory={"skd_jax": (2**21, "planned")})
    lines = train_step.table([row(), alone, only_memory]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    heads = [*train_step.COLUMNS, "mixed"]
    assert cells[0] == heads
    first, second, third = (dict(zip(heads, line, strict=True)) for line in cells[2:])
    assert first == {
        "model": "r3d_18",
        "clips": "8 of 2x16x16",
        "method": "skd_srl",
        "dtype": "float32",
        "skd_jax": "500.0 ms",
        "PyTorch": "1000.0 ms",
        "ratio (lowest to highest)": "0.50 (0.25 to 1.00)",
        "clips/s": "16.0",
        "utilisation": "20.0%",
        "PyTorch's": "50.0%",
        "memory": "3 MiB peak",
        "with remat": "1 MiB peak",
        "mixed": "500.0 ms",
    }
    assert second["skd_jax"] == "100.0 ms" and second["PyTorch"] == second["mixed"] == ""
    assert third["skd_jax"] == third["clips/s"] == "" and third["memory"] == "2 MiB planned"
    train_step.print_row(row())
    out = capsys.readouterr().out
    assert "skd_jax, mixed: chosen" in out and "20.0% of the matrix product" in out


def test_losses_that_part_stop_the_benchmark():
    fine = {"skd_jax": [4.0, 3.0, 2.0], "PyTorch": [4.0001, 3.0001, 2.0001]}
    train_step.check_losses("r3d_18", fine, exact=True)
    wrong = fine | {"PyTorch": [4.0001, 3.3, 2.0]}
    with pytest.raises(SystemExit, match="r3d_18: step 2 of PyTorch has loss 3.30000"):
        train_step.check_losses("r3d_18", wrong, exact=True)
    with pytest.raises(SystemExit, match="step 1 of PyTorch"):
        train_step.check_losses("r3d_18", fine | {"PyTorch": [np.nan] * 3}, exact=False)


def test_options_are_checked_before_anything_starts():
    for shape in ("8x112x64x4", "8x112x112", "8x112x112x-4"):
        with pytest.raises(SystemExit, match="--shapes takes square clips, TxSxSxBATCH"):
            train_step.main(["--no-torch", "--shapes", shape])
    options = train_step.parse(["--dtype", "bfloat16", "--lowerings", "plain", "mixed"])
    case = next(train_step.cases(options))
    assert list(train_step.contenders(case, options)) == [
        "skd_jax",
        "skd_jax, plain",
        "skd_jax, mixed",
        "PyTorch, channels_last_3d",
    ]


# --- lowerings by force ---


def test_forced_rows_come_before_the_table(monkeypatch):
    pointwise = ((1, 1, 1, 4, 8), (1, 1, 1), (0, 0, 0), 1, np.dtype("float32"))
    depthwise = ((3, 3, 3, 1, 8), (1, 1, 1), (1, 1, 1), 8, np.dtype("float32"))
    usual = choices.TABLE
    for lowering, grouped in (("plain", "plain"), ("folded", "depthwise")):
        choices.TABLE = usual
        train_step.force(lowering, None, None, "float32")
        assert choose_lowering("cpu", *pointwise) == lowering
        assert choose_lowering("cpu", *depthwise) == grouped
    choices.TABLE = usual
    found = {Convolution(*pointwise): ("plain", {"plain": 1.0, "matmul": 2.0})}
    monkeypatch.setattr(convolutions, "quickest", lambda *_, **__: found)
    monkeypatch.setattr(convolutions, "cases_of", lambda *_: {})
    said = train_step.force("mixed", None, None, "float32")
    assert said == ["1x1x1x4x8, stride 1x1x1: plain (plain 1.00, matmul 2.00 ms)"]
    assert choose_lowering("cpu", *pointwise) == "plain"
    assert choose_lowering("cpu", *pointwise[:-1], np.dtype("float64")) == "matmul"
    assert choose_lowering("cpu", *depthwise) == "depthwise"


# --- processes ---


class Local:
    """A `Side` in this process."""

    def __init__(self, side, **options):
        self._side = {"jax": train_step.JaxSide, "torch": train_step.TorchSide}[side](**options)
        self.facts = self._side.facts

    def __call__(self, name, *arguments):
        return 0.5, getattr(self._side, name)(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def local(monkeypatch):
    """Sides in this process, and networks an eighth as wide."""
    monkeypatch.setattr(train_step, "Side", Local)
    monkeypatch.setattr(models, "create", functools.partial(models.create, width=0.125))


def test_a_tiny_run(local, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(convolutions, "quickest", _first_of_each)
    path = tmp_path / "rows.json"
    arguments = "--models r3d_10 --shapes 2x16x16x4 --methods supervised --no-torch --rounds 1"
    arguments += f" --seconds 1 --lowerings mixed --peak 32 --apart --json {path}"
    assert train_step.main(arguments.split()) == 0
    out = capsys.readouterr().out
    assert "3x3x3x8x8, stride 1x1x1: plain" in out
    line = out.splitlines()[-1]
    # Two steps in a turn of half a second.
    assert line.startswith("| r3d_10 | 4 of 2x16x16 | supervised | float32 | 250.0 ms |")
    assert line.count("planned") == 2
    (made,) = json.loads(path.read_text())["rows"]
    ours, mixed = made["losses"].values()
    # It learns the four videos; the same function, otherwise computed.
    assert ours[0] > ours[1] > ours[2] > 0
    np.testing.assert_allclose(mixed, ours, rtol=1e-3)
    assert made["macs"] > 0 and made["peak_flops"]["skd_jax"] > 0


def _first_of_each(cases, dtype, runs):
    """Without measuring: plain for all but pointwise convolutions."""
    found = {case.convolution(dtype) for case in cases}
    return {key: ("matmul" if choices.pointwise(key) else "plain", {}) for key in found}


def test_memory_alone(monkeypatch, capsys):
    """As a device reports it: after steps, with and without recomputation, nothing timed."""
    asked = []

    class Reporting(Local):
        def __init__(self, side, remat=False, **_):
            kept = 2**20 * (3 if remat else 4)
            self.facts = {"device": "a GPU", "exact": False, "macs": 1, "kept": kept}
            self._remat = remat

        def __call__(self, name, *_):
            asked.append(name)
            found = {"memory": ((1 if self._remat else 2) * 2**20, "peak"), "losses": [3, 2, 1]}
            return 0.5, found.get(name)

    monkeypatch.setattr(train_step, "Side", Reporting)
    arguments = "--models r3d_10 --shapes 2x16x16x4 --methods supervised --memory"
    assert train_step.main(arguments.split()) == 0
    assert asked == ["losses", "memory", "steps", "memory"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("| 2 MiB peak | 1 MiB peak |")
    kept = [line.split()[-3:] for line in lines if line.startswith("  kept, ")]
    assert kept == [["skd_jax", "4", "MiB"], ["remat", "3", "MiB"]]


class Failing(Local):
    """Sides without a device: "folded" fails, remat with more than 4 videos, all with more than 8."""

    def __init__(self, side, batch, lowering=None, remat=False, **_):
        self._lowering = lowering
        self.facts = {"device": "a GPU", "exact": True, "macs": 1, "kept": 2**20}
        if batch > 8 or (remat and batch > 4):
            raise train_step.SideFailed("XlaRuntimeError: RESOURCE_EXHAUSTED")

    def __call__(self, name, *_):
        if name == "steps" and self._lowering == "folded":
            raise train_step.SideFailed("OutOfMemory: 3 GiB")
        found = {"memory": (2**20, "planned"), "losses": [3, 2, 1], "peak": 1e9}
        return 0.5, found.get(name)


def test_what_does_not_fit_is_told_and_the_rest_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train_step, "Side", Failing)
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(train_step.machine, "versions", lambda *_: {})
    path = tmp_path / "rows.json"
    arguments = "--models r3d_10 --methods supervised --shapes 2x16x16x4 2x16x16x16 2x16x16x8 "
    arguments += f"--apart --rounds 1 --lowerings folded mixed --json {path}"
    assert train_step.main(arguments.split()) == 1
    out = capsys.readouterr().out
    assert "failed: OutOfMemory: 3 GiB" in out and "failed: XlaRuntimeError" in out
    heads, _, *lines = (line for line in out.splitlines() if line.startswith("| "))
    rows = [dict(zip(heads.split("|"), line.split("|"), strict=True)) for line in lines]
    rows = [{key.strip(): cell.strip() for key, cell in row.items()} for row in rows]
    assert len(rows) == 3
    for row, timed in zip(rows, (True, False, True), strict=True):
        assert row["skd_jax"].endswith(" ms") == timed
        assert row["skd_jax"] == "failed" or row["PyTorch"].endswith(" ms")
    first, second, third = json.loads(path.read_text())["rows"]
    assert set(first["failed"]) == {"skd_jax, folded"} and first["ratio"] == 1
    assert set(first["times"]) == set(first["memory"]) - {"skd_jax, folded", "remat"}
    assert set(second["failed"]) == {"skd_jax"} and second["times"] == {}
    assert set(third["failed"]) == {"skd_jax, folded", "remat"}


def test_a_process_that_is_gone_is_a_failed_side(monkeypatch):
    monkeypatch.setattr(train_step, "serve", print)  # ends at once, without a word
    with pytest.raises(train_step.SideFailed, match="its process ended with status 0"):
        train_step.Side("jax")
    far, gone = Pipe()
    gone.close()
    side = object.__new__(train_step.Side)
    side._connection = far
    side._process = types.SimpleNamespace(pid=os.getpid(), join=lambda: None, exitcode=-9)
    with pytest.raises(train_step.SideFailed, match="its process ended with status -9"):
        side("steps", 1)


def test_a_side_answers_until_it_is_told_to_end(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    fake = types.SimpleNamespace(facts={"device": "none"}, steps=lambda count: count + 1)
    monkeypatch.setattr(train_step, "JaxSide", lambda **_: fake)
    near, far = Pipe()
    thread = threading.Thread(target=train_step.serve, args=(far, "jax", {}))
    thread.start()
    assert near.recv() == ("ready", {"device": "none"})
    near.send(("steps", (2,)))
    seconds, result = near.recv()
    assert result == 3 and seconds >= 0
    near.send(("absent", ()))
    assert near.recv()[0] == "failed"
    thread.join()
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


_SCRIPT = """
import functools

from benchmarks import train_step

assert "jax" not in sys.modules  # the parent of the sides takes no memory of a device
from skd_jax import models

models.create = functools.partial(models.create, width=0.125)
side = train_step.JaxSide("r3d_10", "supervised", 2, 16, 4, "bfloat16", lowering="folded")
losses = side.losses(2)
assert losses[0] > losses[1] > 0, losses
assert side.memory()[1] == "planned" and side.peak("bfloat16", 16) > 0
from benchmarks import convolutions, loop_overhead
"""


def test_our_side_runs_where_tensorflow_is_not_installed(tmp_path):
    blocked.run(_SCRIPT, tmp_path)


# --- PyTorch ---


@pytest.mark.parametrize("method", train_step.METHODS)
def test_both_sides_start_alike(monkeypatch, method):
    pytest.importorskip("torch", reason="PyTorch is no dependency of the tests")
    case = {"model": "mc3_18", "method": method, **TINY}
    ours = train_step.JaxSide(**case)
    weights = ours.weights()
    losses = {"skd_jax": ours.losses(train_step.COMPARED_STEPS)}

    def peer(**changes):
        for name, value in changes.items():
            monkeypatch.setattr(train_step, name, value)
        side = train_step.TorchSide(**case, channels_last=not changes)
        side.load(weights)
        return side

    side = peer()
    losses["PyTorch"] = side.losses(train_step.COMPARED_STEPS)
    train_step.check_losses("mc3_18", losses, exact=True)
    assert side.peak("float32", 16) > 0 and side.facts["device"]
    losses["PyTorch"] = peer(MOMENTUM=0.5).losses(train_step.COMPARED_STEPS)
    with pytest.raises(SystemExit, match="step 2 of PyTorch"):
        train_step.check_losses("mc3_18", losses, exact=True)
