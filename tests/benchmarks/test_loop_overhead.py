"""One tiny run of the loop beside its bare step."""

import re

import numpy as np

from benchmarks import loop_overhead
from skd_jax import methods
from tests.fakes import Normed, quick_compilation  # noqa: F401  the latter a fixture


def test_a_tiny_run(monkeypatch, capsys):
    monkeypatch.setattr(loop_overhead.models, "create", lambda *_, **options: Normed())
    monkeypatch.setattr(loop_overhead.memory, "keep_freed_memory", lambda: None)
    tiny = "--frames 2 --size 8 --batch 8 --steps 2 --rounds 1"
    loop_overhead.main(tiny.split())
    out = capsys.readouterr().out
    assert "clips on the device: uint8" in out
    state, taken_over = map(float, re.search(r"state (\S+) MB, .* result (\S+) MB", out).groups())
    assert taken_over >= state
    rates = re.findall(r"^(bare step|loop) +([\d.]+) steps/s", out, re.MULTILINE)
    assert [name for name, _ in rates] == ["bare step", "loop"]
    bare, loop = (float(rate) for _, rate in rates)
    overhead = float(re.search(r"^overhead +(-?[\d.]+)%", out, re.MULTILINE)[1]) / 100
    np.testing.assert_allclose(overhead, bare / loop - 1, rtol=0.02, atol=0.01)


def test_batches_are_those_of_the_pipeline():
    method = methods.create("supervised", Normed())
    first, second = loop_overhead.make_batches(method, (2, 8, 8), 3, 2)
    assert first["clips"].dtype == np.uint8 and first["clips"].shape[:3] == (3, 1, 2)
    assert (first["clips"] != second["clips"]).any()
    assert (first["size"] == 8).all() and first["label"].max() <= 1
