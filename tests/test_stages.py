"""Stages: how the steps are shared, where a killed run goes on, what the next stage begins with."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from skd_jax import checkpoint, metrics, stages, train, workdir
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.methods import base
from skd_jax.methods.supervised import Supervised
from skd_jax.optim import OptimSettings
from tests import fakes
from tests.test_train import batches, names, validation

MODEL = fakes.Normed(num_classes=4)
TOTAL = 10


@dataclasses.dataclass(frozen=True)
class Staged(Supervised):
    """Trains all but `fc` first; then begins with what that left, `fc` aside."""

    @property
    def earlier_stages(self):
        first = HeadFixed(self.model)
        return (base.Stage("first", first, 0.4, {"learning_rate": 0.5}),)

    def begin(self, variables, state, finished):
        return base.replace_network(variables, "model", finished["first"]), state


@dataclasses.dataclass(frozen=True)
class HeadFixed(Supervised):
    fixed = ("model/fc",)


METHOD = Staged(MODEL)


def run(folder, settings=None, log=lambda _: None, stop_after=None):
    """As `modes.run_train` does it."""
    whole = train.LoopSettings(
        total_steps=TOTAL,
        clip_shape=(2, 8, 8, 3),
        log_every=1,
        eval_every=3,
        checkpoint_every=1,
        **(settings or {}),
    )
    trainings = stages.plan(METHOD, TOTAL, folder)
    for training in stages.to_do(trainings):

        def endless(start, name=training.name):
            for number, batch in enumerate(batches(start), start):
                if stop_after == (name, number):
                    raise KeyboardInterrupt
                yield batch

        held_out = None if training.name else validation
        train.train(
            training.method,
            optax.sgd(0.1),
            optax.constant_schedule(0.1),
            AugmentSettings(crop=8),
            training.loop(whole),
            train.Data(endless, held_out, names),
            training.folder,
            training.log(log),
            begin=stages.begin(training, trainings, log),
        )


def last(folder):
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    return checkpoints.restore(checkpoints.steps()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    lines = []
    run(folder, log=lines.append)
    return folder, lines


def test_steps_are_shared_out_and_each_training_has_its_folder(whole):
    folder, lines = whole
    first, own = stages.plan(METHOD, TOTAL, folder)
    assert (first.steps, own.steps) == (4, 6)
    assert (first.folder, own.folder) == (folder / "stages" / "first", folder)
    assert last(first.folder)["step"] == 4 and last(folder)["step"] == 6
    assert [r["step"] for r in metrics.read_rows(first.folder / "metrics.jsonl")] == [1, 2, 3, 4]
    assert any(line.startswith("stage 1 of 2, first: ") for line in lines)
    assert any(line.startswith("stage 2 of 2, last: step 6: validation") for line in lines)
    assert stages.last_metrics(folder)["first"]["step"] == 4


def test_what_a_stage_leaves_as_it_is_stays_bit_for_bit(whole):
    state = last(whole[0] / "stages" / "first")
    start = METHOD.init(jax.random.key(0), np.zeros((1, 2, 8, 8, 3), np.float32))["params"]["model"]
    np.testing.assert_array_equal(state["params.model.fc.kernel"], start["fc"]["kernel"])
    assert (state["params.model.stem.kernel"] != start["stem"]["kernel"]).any()


def test_the_next_training_begins_with_what_the_stage_left(whole, tmp_path):
    trainings = stages.plan(METHOD, TOTAL, whole[0])
    state = train.step.create_state(
        METHOD,
        optax.sgd(0.1),
        jax.random.key(7),
        (2, 8, 8, 3),
        train.step.StepSettings(6, ema_decay=0.9),
    )
    begun = stages.begin(trainings[1], trainings, print)(state)
    left = last(whole[0] / "stages" / "first")
    for name, value in checkpoint.flatten(begun.params).items():
        np.testing.assert_array_equal(value, left[f"params.{name}"])
    for name, value in checkpoint.flatten(begun.ema["batch_stats"]).items():
        np.testing.assert_array_equal(value, left[f"batch_stats.{name}"])


@pytest.mark.parametrize("at", [("first", 2), ("first", 4), ("", 0), ("", 3)])
def test_a_killed_run_ends_as_one_that_was_not(whole, tmp_path, at):
    try:
        run(tmp_path, stop_after=at)
    except KeyboardInterrupt:
        pass
    kept = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "stages" / "first").rglob("*")
        if at[0] == "" and path.is_file()
    }
    run(tmp_path)
    for path, time in kept.items():
        assert path.stat().st_mtime_ns == time, f"{path} was written again"
    for name, value in last(whole[0]).items():
        np.testing.assert_array_equal(last(tmp_path)[name], value, err_msg=name)


def test_finished_stages_may_be_deleted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=("", 4))
    for path in sorted((tmp_path / "stages").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run(tmp_path)
    assert last(tmp_path)["step"] == 6
    assert not stages.folders(tmp_path)


def test_a_stage_whose_last_state_is_lost_is_named(whole, tmp_path):
    first = stages.plan(METHOD, TOTAL, tmp_path)[0]
    with pytest.raises(UserError, match="stage 'first' ended in; run the same command"):
        stages._variables(first, print)


def test_the_averaged_weights_are_what_counts(tmp_path):
    run(tmp_path, {"ema_decay": 0.5})
    trainings = stages.plan(METHOD, TOTAL, tmp_path)
    left = stages._variables(trainings[0], print)
    flat = last(tmp_path / "stages" / "first")
    np.testing.assert_array_equal(
        left["params"]["model"]["stem"]["kernel"], flat["ema.params.model.stem.kernel"]
    )


def test_the_schedule_shrinks_with_the_stage():
    first, own = stages.plan(METHOD, 1000, workdir.Path("w"))
    whole = OptimSettings(learning_rate=0.1, warmup_steps=50, boundaries=(300, 900))
    shrunk = first.optimiser(whole)
    assert (shrunk.warmup_steps, shrunk.boundaries) == (20, (120, 360))
    assert shrunk.learning_rate == 0.5
    assert (own.optimiser(whole).learning_rate, own.optimiser(whole).warmup_steps) == (0.1, 30)
    (alone,) = stages.plan(Supervised(MODEL), 1000, workdir.Path("w"))
    assert alone.optimiser(whole) is whole and alone.title == ""


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="1 steps are too few for 2 stages, they would have 0, 1"):
        stages.plan(METHOD, 1, workdir.Path("w"))
