"""The collectives of the compiled step on two fake devices, as many as there must be.

As a script this file compiles the steps and prints what it read: python tests/benchmarks/test_scaling.py
"""

import functools
import json
import subprocess
import sys

import jax
import pytest

from benchmarks import pod_cost, scaling
from benchmarks.collectives import collectives
from skd_jax import augment, methods, optim, parallel, step
from tests import devices
from tests.fakes import Normed, pixel_batch
from tests.tiny import REPOSITORY

CASES = [
    ("pmap", "supervised", True),
    ("shard_map", "supervised", True),
    ("shard_map", "supervised", False),
    ("shard_map", "skd_srl", True),
]


def create(method: str, sync: bool) -> methods.Method:
    options = {"projector_out": 8, "predictor_hidden": 32} if method == "skd_srl" else {}
    return methods.create(method, Normed(), sync_batch_norm=sync, **options)


def read(name: str, method_name: str, sync: bool) -> dict:
    """Collectives by part, and whose memory the new state takes."""
    method = create(method_name, sync)
    tx = optim.optimiser(optim.OptimSettings(), 4, method.constant_lr)
    settings = step.StepSettings(total_steps=4, ema_decay=0.9)
    replicas = parallel.create(name)
    state = step.create_state(method, tx, jax.random.key(0), (2, 4, 4, 3), settings)
    run = replicas.train(
        functools.partial(
            step.train_step,
            method=method,
            tx=tx,
            augmentation=augment.AugmentSettings(crop=4),
            settings=settings,
        )
    )
    batch = replicas.shard(pixel_batch(views=method.num_views))
    compiled = run.lower(replicas.put(state), batch).compile()
    parts = {part: {} for part in scaling.PARTS}
    for found in collectives(compiled.as_text()):
        kinds = parts[scaling.part_of(found.op_name)]
        count, nbytes = kinds.get(found.kind, (0, 0))
        kinds[found.kind] = (count + 1, nbytes + found.nbytes)
    return {
        "parts": parts,
        "state": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "alias": compiled.memory_analysis().alias_size_in_bytes,
    }


@pytest.fixture(scope="module")
def compiled() -> dict:
    return dict(zip(CASES, json.loads(devices.run(__file__, devices=2)), strict=True))


@pytest.mark.parametrize("case", CASES[:3])
def test_one_all_reduce_for_the_update_and_two_for_each_synchronised_batch_norm(compiled, case):
    _, name, sync = case
    work = pod_cost.step_of(create(name, sync), (2, 4, 4), 1)
    assert work.batch_norms == (1 if sync else 0)
    half = {"all-reduce": [1, work.batch_norm_bytes // 2]} if sync else {}
    assert compiled[case]["parts"] == {
        "update": {"all-reduce": [1, work.fused_bytes]},
        "forward": half,
        "backward": half,
        "diagnostics": {},
    }


def test_skd_srl_reduces_the_batch_norms_of_both_views_and_diagnostics(compiled):
    parts = compiled[CASES[3]]["parts"]
    work = pod_cost.step_of(create("skd_srl", True), (2, 4, 4), 1)
    assert work.batch_norms == 2 * (1 + 3 + 1)  # classifier, projector, predictor
    assert parts["update"] == {"all-reduce": [1, work.fused_bytes]}
    rest = [parts[part] for part in ("forward", "backward", "diagnostics")]
    # XLA joins what does not depend on each other, of two parts too; the bytes stay. The 16 vectors
    # are gathered where they have 8 features and averaged, with their 6 x 6 moments, where they have 6.
    assert sum("all-gather" in kinds for kinds in rest) == 1
    assert parts["diagnostics"]["all-gather"] == [1, 16 * 8 * 4]
    counts, nbytes = zip(*(kinds["all-reduce"] for kinds in rest), strict=True)
    assert work.batch_norms <= sum(counts) <= 2 * work.batch_norms + 2
    assert sum(nbytes) == work.batch_norm_bytes + 4 * (6 + 6 * 6)


@pytest.mark.parametrize("case", CASES)
def test_the_new_state_takes_the_memory_of_the_old_one(compiled, case):
    assert compiled[case]["alias"] >= compiled[case]["state"]


def test_a_row_of_the_table():
    found = {part: {"kinds": {}, "bytes": 0} for part in scaling.PARTS}
    found["update"] = {"kinds": {"all-reduce": 1}, "bytes": 133_524_296}
    found["diagnostics"] = {"kinds": {"all-reduce": 2, "all-gather": 1}, "bytes": 1500}
    row = {"collectives": found, "processes": 2, "devices": 2, "replicas": "pmap"}
    row |= {"method": "skd_srl", "sync": False}
    words = "2 x 1 pmap skd_srl apart 1 AR 133.5 MB - - 1 AG 2 AR 1.5 kB"
    assert scaling.line(row).split() == words.split()
    timed = scaling.line(row | {"with": 2.0, "without": 1.5})
    assert timed.endswith("2.000 s   1.500 s  25.0%")
    assert len(timed) == len(scaling.heading())


def test_a_clip_that_is_not_square_is_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.parse(["--clip", "8,64,48"])
    assert "--clip takes T,H,W with H = W" in capsys.readouterr().err
    assert scaling.parse(["--clip", "8,64,64", "--devices", "2"]).devices == [2]


@pytest.mark.slow
def test_one_and_two_devices_and_two_processes():
    command = [sys.executable, "-m", "benchmarks.scaling", "--model", "r3d_10", "--width", "0.0625"]
    command += ["--classes", "4", "--clip", "4,16,16", "--replicas", "pmap", "--steps", "1"]
    command += ["--methods", "supervised", "--devices", "1,2"]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " pmap " in line]
    assert [row[:3] for row in rows[::2]] == [["1", "x", "1"], ["1", "x", "2"], ["2", "x", "1"]]
    assert [row[5] for row in rows] == ["synced", "apart"] * 3
    assert [row[6] for row in rows[:2]] == ["-", "-"]  # one device reduces nothing
    options = scaling.parse(command[3:])
    cost = pod_cost.step_of(scaling.create_method(options, "supervised", True), (4, 16, 16), 2)
    for row in rows[2:]:
        assert row[6:10] == ["1", "AR", *scaling.size(cost.fused_bytes).split()]
    assert all(row[-1].endswith("%") for row in rows)


if __name__ == "__main__":
    assert jax.device_count() == 2
    print(json.dumps([read(*case) for case in CASES]))
