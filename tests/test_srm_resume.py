"""SRM killed within each of its stages ends as a run that was not, its own state included."""

import jax
import numpy as np
import pytest

from skd_jax import checkpoint, optim, stages, train
from skd_jax.augment import AugmentSettings
from skd_jax.methods.srm import SRM
from tests.fakes import quick_compilation  # noqa: F401  a fixture
from tests.methods.test_srm import STUDENT, TAUGHT, TEACHER

TOTAL, WINDOW = 12, 100
METHOD = SRM(
    STUDENT,
    teacher=TEACHER,
    stages="1,2",
    sparsity=0.2,
    dictionary_share=0.4,
    student_share=0.3,
    usage_window=WINDOW,
)
CLIP = np.zeros((1, 2, 4, 4, 3), np.float32)
OPTIM = optim.OptimSettings(learning_rate=0.1, warmup_steps=2)
LOOP = train.LoopSettings(
    total_steps=TOTAL, clip_shape=(2, 4, 4, 3), log_every=1, checkpoint_every=1, keep=20
)


class Killed(Exception):
    pass


def batch(number):
    """Two clips of nearly one colour each, so that a step uses few atoms, and others than the last."""
    rng = np.random.default_rng(number)
    colour = rng.integers(0, 216, (2, 1, 1, 1, 1, 3))
    return {
        "clips": (colour + rng.integers(0, 40, (2, 1, 2, 4, 4, 3))).astype(np.uint8),
        "size": np.full((2, 1, 2), 4, np.int32),
        "flip": np.zeros((2, 1), bool),
        "key": rng.integers(2**32, size=(2, 2), dtype=np.uint32),
        "label": rng.integers(4, size=2).astype(np.int32),
        "index": np.arange(2, dtype=np.int32),
    }


def quiet(_):
    pass


def run(folder, kill=None):
    """As `modes.run_train`; `kill` is (stage, steps that it finishes)."""
    trainings = stages.plan(METHOD, TOTAL, folder)
    for training in stages.to_do(trainings):

        def endless(start, name=training.name):
            number = start
            while True:
                if kill and name == kill[0] and number == kill[1] + 2:  # read two steps ahead
                    raise Killed
                yield batch(number)
                number += 1

        settings = training.optimiser(OPTIM)
        train.train(
            training.method,
            optim.optimiser(settings, training.steps),
            optim.schedule(settings, training.steps),
            AugmentSettings(crop=4),
            training.loop(LOOP),
            train.Data(endless, None, lambda rows: [str(row) for row in rows]),
            training.folder,
            quiet,
            teacher=stages.teacher(training, trainings, lambda: TAUGHT, quiet),
            begin=stages.begin(training, trainings, quiet),
        )


def last(folder):
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    return checkpoints.restore(checkpoints.steps()[-1])


def test_killed_within_every_stage_it_ends_as_one_that_was_not(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole)
    folders = {name: f"stages/{name}" for name in ("dictionary", "student")} | {"": "."}
    for name, steps in (("dictionary", 4), ("student", 2), ("", 1)):
        with pytest.raises(Killed):
            run(cut, (name, steps))
        assert last(cut / folders[name])["step"] == steps
    run(cut)

    found = {name: last(whole / folder) for name, folder in folders.items()}
    assert [state["step"] for state in found.values()] == [5, 4, 3]
    for name, state in found.items():
        again = last(cut / folders[name])
        assert again.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(again[key], value, err_msg=f"{name}: {key}")

    # What is compared has moved, within the stages and since the kill.
    first, second = found["dictionary"], found["student"]
    idle = np.concatenate([first[f"method_state.idle.{n}"] for n in (0, 1)])
    assert ((idle > 0) & (idle < WINDOW)).any()  # in use before the kill, and not since
    start = jax.device_get(METHOD.earlier_stages[0].method.init(jax.random.key(0), CLIP))
    start = checkpoint.flatten(start["params"]["dictionary"])
    for key, value in start.items():
        learnt = first[f"params.dictionary.{key}"]
        assert (learnt != value).any()
        np.testing.assert_array_equal(second[f"method_state.dictionary.{key}"], learnt)
