"""The table of convolutions: FLOPs and cases against the models' own counts, tiny measurements for real."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import convolutions
from benchmarks.convolutions import CASES, Case
from skd_jax import models
from skd_jax.models import choices, conv3d, onednn
from skd_jax.models.cost import cost
from tests.fakes import quick_compilation  # noqa: F401  a fixture

TINY = Case((1, 3, 5, 5, 4), (3, 3, 3, 4, 6), (1, 2, 2), (1, 1, 1))
GROUPED = Case((1, 2, 4, 4, 4), (1, 3, 3, 2, 4), (1, 1, 1), (0, 1, 1), 2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_is_a_convolution_that_its_lowerings_compute(case):
    kernel = jax.ShapeDtypeStruct(case.kernel, jnp.float32)
    clips = jax.ShapeDtypeStruct(case.clips, jnp.float32)

    def shape(lowering):
        run = lambda x, k: conv3d.conv3d(x, k, *case[2:], lowering=lowering)
        return jax.eval_shape(run, clips, kernel).shape

    names = convolutions.lowerings(case, "float32")
    assert {"plain", "folded"} < {*names, ""} and len({shape(name) for name in names}) == 1
    output = shape("plain")
    terms = math.prod(case.kernel[:4])
    assert convolutions.flops(case) == 2 * math.prod(output) * terms
    chosen = choices.choose_lowering("cpu", *case.convolution("float32"))
    assert chosen in names


def test_cases_of_a_model_are_all_its_convolutions():
    """R3D-18's multiply-accumulates are its convolutions' and the 512 x 101 ones of its last layer."""
    model = models.create("r3d_18", 101)
    table = choices.TABLE
    found = convolutions.cases_of(model, (2, 16, 112, 112, 3), "float32")
    assert choices.TABLE is table
    assert sum(found.values()) == 20  # 16 in blocks, the stem, 3 shortcuts
    assert found[Case((2, 16, 56, 56, 64), (3, 3, 3, 64, 64), (1, 1, 1), (1, 1, 1))] == 4
    total = sum(count * convolutions.flops(case) for case, count in found.items())
    assert total == 2 * 2 * (cost(model, (16, 112, 112)).macs - 512 * 101)


def test_taps_over_padding_alone_are_no_part_of_a_case():
    model = models.create("r3d_18", 101)
    found = convolutions.cases_of(model, (1, 8, 32, 32, 3), "bfloat16")
    assert found[Case((1, 1, 2, 2, 512), (1, 3, 3, 512, 512), (1, 1, 1), (0, 1, 1))] == 3


def test_quickest_adds_up_what_a_convolution_takes_over_all_its_clips(monkeypatch):
    larger = TINY._replace(clips=(1, 3, 9, 9, 4))
    times = {TINY: {"plain": 1.0, "folded": 2.0}, larger: {"plain": 5.0, "folded": 3.5}}
    monkeypatch.setattr(convolutions, "measure_lowerings", lambda case, *_: times[case])
    key = TINY.convolution("float32")
    assert convolutions.quickest({TINY: 1, larger: 1}, "float32", 1) == {
        key: ("folded", {"plain": 6.0, "folded": 5.5})
    }
    assert convolutions.quickest({TINY: 2, larger: 1}, "float32", 1)[key][0] == "plain"
    times[larger]["plain"] = math.nan  # the device could not
    assert convolutions.quickest({TINY: 9, larger: 1}, "float32", 1)[key][0] == "folded"


def test_what_a_device_cannot_run_is_left_out(capsys):
    def fails(x):
        def callback(x):
            raise RuntimeError("no such algorithm")

        return jax.pure_callback(callback, jax.ShapeDtypeStruct((), jnp.float32), x)

    assert math.isnan(convolutions.milliseconds(fails, np.float32(1), runs=1))
    assert "left out: " in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tiny_run_writes_its_section(tmp_path, monkeypatch, capsys, dtype):
    monkeypatch.setattr(convolutions, "CASES", {"tiny": TINY, "grouped": GROUPED})
    monkeypatch.setattr(convolutions.memory, "keep_freed_memory", lambda: None)
    path = tmp_path / "convolutions.md"
    path.write_text("# Title\n\n## another machine, float32\n\nkept\n")
    arguments = ["--cases", "tiny", "grouped", "--dtype", dtype, "--runs", "1"]
    assert convolutions.main([*arguments, "--markdown", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("# Title\n\n## another machine, float32\n\nkept\n\n## ")
    for case, groups in (("tiny", 1), ("grouped", 2)):
        lines = [line for line in text.splitlines() if line.startswith(f"| {case} |")]
        forms = ["plain", "side_by_side"]
        if groups == 1:
            forms += ["phased", "spread", "written"]
            if choices.onednn_computes(TINY.convolution(dtype)):
                forms.append("direct")
        assert sorted(line.split(" | ")[1] for line in lines[1:]) == sorted(forms)
        assert lines[0].count("**") == 2  # the table's choice
    assert f", {dtype}\n" in text and "jaxlib" in text
    assert text.split("## ", 2)[2].rstrip() in capsys.readouterr().out


def test_a_section_takes_the_place_of_its_forerunner():
    first = convolutions.replaced("", "## A\n\none\n")
    both = convolutions.replaced(first, "## B\n\ntwo\n")
    assert first.startswith(convolutions.INTRODUCTION)
    assert both == first + "\n## B\n\ntwo\n"
    assert convolutions.replaced(both, "## A\n\nnew\n") == both.replace("one", "new")


COMMITTED = pathlib.Path(convolutions.__file__).with_suffix(".md")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_committed_measurements_are_of_the_choices_as_they_are(dtype):
    """Whoever changes the table of lowerings measures anew."""
    if dtype == "float32" and not onednn.available():
        pytest.skip("oneDNN's convolution, which was measured, is not in this jaxlib")
    parts = COMMITTED.read_text().split("\n## ")[1:]
    # The file may hold other devices, for which the choices are others.
    parts = [part for part in parts if "oneDNN is used" in part]
    parts = [part for part in parts if part.splitlines()[0].endswith(f", {dtype}")]
    assert parts
    for part in parts:
        rows, names = {}, None
        for line in part.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] == "convolution" and "form" not in cells:
                names = cells[1:]
            elif names and cells[0] in CASES and cells[0] not in rows:
                bold = [cell.startswith("**") for cell in cells[1:]]
                rows[cells[0]] = names[bold.index(True)]
        assert rows == {
            name: choices.choose_lowering("cpu", *case.convolution(dtype))
            for name, case in CASES.items()
        }
