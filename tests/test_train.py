"""The loop: what it does when the numbers go wrong, and the averaged weights."""

import dataclasses
import functools
import json
import os
import re
import signal
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skd_jax import checkpoint, methods, metrics, parallel, train
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.methods.supervised import Supervised
from skd_jax.models import Outputs
from tests import fakes
from tests.fakes import quick_compilation  # noqa: F401  a fixture

SETTINGS = train.LoopSettings(
    total_steps=8, clip_shape=(2, 8, 8, 3), log_every=2, eval_every=4, checkpoint_every=2
)


def batches(start: int = 0, videos: int = 8, views: int = 1):
    """Endless training batches, a function of the step."""
    step = start
    while True:
        rng = np.random.default_rng(step)
        yield {
            "clips": rng.integers(0, 256, (videos, views, 2, 8, 8, 3), dtype=np.uint8),
            "size": np.full((videos, views, 2), 8, np.int32),
            "flip": np.zeros((videos, views), bool),
            "key": rng.integers(2**32, size=(videos, 2), dtype=np.uint32),
            "label": np.arange(videos, dtype=np.int32) % 4,
            "index": np.arange(videos, dtype=np.int32) + 100 * step,
        }
        step += 1


def validation():
    batch = next(batches(1000))
    return [batch | {"mask": np.arange(8) < 6}]


def names(rows):
    return [f"video_{row}" for row in rows]


def run(workdir, settings=SETTINGS, rate=0.1, data=None, log=lambda _: None, method=None):
    """`method` may be one, or the name of one."""
    data = data or train.Data(batches, validation, names)
    if isinstance(method, str):
        method = methods.create(method, fakes.Normed(num_classes=4), num_videos=8)
    return train.train(
        method or Supervised(model=fakes.Normed(num_classes=4)),
        optax.sgd(rate),
        optax.constant_schedule(rate),
        AugmentSettings(crop=8),
        settings,
        data,
        workdir,
        log,
    )


def test_not_finite_loss_stops_names_the_batch_and_keeps_the_last_good_checkpoint(tmp_path):
    def poisoned(start):
        for step, batch in enumerate(batches(start), start):
            if step == 5:  # the sixth step: an empty window divides by zero
                batch = batch | {"size": np.zeros_like(batch["size"])}
            yield batch

    with pytest.raises(UserError) as error:
        run(tmp_path, data=train.Data(poisoned, validation, names))
    assert "at step 6" in str(error.value)
    assert "video_500" in str(error.value)
    report = json.loads((tmp_path / "not_finite_step_6_process_0.json").read_text())
    assert report["step"] == 6 and report["videos"] == [f"video_{500 + i}" for i in range(8)]
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps()[-1] == 4
    assert all(np.isfinite(value).all() for value in checkpoints.restore(4).values())


def test_averaged_weights_are_evaluated_beside_the_raw_ones(tmp_path):
    settings = train.LoopSettings(**(vars(SETTINGS) | {"ema_decay": 0.5}))
    lines = []
    assert run(tmp_path, settings, log=lines.append)
    rows = [r for r in metrics.read_rows(tmp_path / "metrics.jsonl") if r["split"] == "validation"]
    assert [row["step"] for row in rows] == [4, 8]
    assert all({"top1", "loss", "ema_top1", "ema_loss"} <= row.keys() for row in rows)
    assert any("averaged weights" in line for line in lines)
    flat = checkpoint.Checkpoints(tmp_path / "checkpoints").restore(8)
    raw, averaged = checkpoint.variables(flat), checkpoint.variables(flat, ema=True)
    assert raw["params"].keys() == averaged["params"].keys() == {"model"}


@pytest.mark.parametrize("replicas", [parallel.Pmap, parallel.ShardMap])
def test_batches_are_on_the_devices_two_steps_ahead(tmp_path, monkeypatch, replicas):
    events = []

    class Recording(replicas):
        def shard(self, batch):
            placed = super().shard(batch)
            assert placed["clips"].dtype == np.uint8
            events.append("sent")
            return placed

        def train(self, step):
            run = super().train(step)

            def recorded(*args):
                events.append("step")
                return run(*args)

            return recorded

    monkeypatch.setattr(parallel, "create", lambda _: Recording())
    assert run(tmp_path, data=train.Data(batches, None, names))
    sent = [events[:at].count("sent") for at, event in enumerate(events) if event == "step"]
    assert sent == [number + 2 for number in range(1, 9)]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    assert run(tmp_path)
    before = checkpoint.Checkpoints(tmp_path / "checkpoints").restore(8)
    rows = (tmp_path / "metrics.jsonl").read_text()
    assert run(tmp_path)
    after = checkpoint.Checkpoints(tmp_path / "checkpoints").restore(8)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert (tmp_path / "metrics.jsonl").read_text() == rows


def test_without_validation_the_last_checkpoint_counts(tmp_path):
    assert run(tmp_path, data=train.Data(batches, None, names))
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.best() is None and checkpoints.steps() == [6, 8]


def test_a_signal_during_the_last_evaluation_stops_before_the_test(tmp_path):
    evaluations = []

    def signalling():
        evaluations.append(len(evaluations))
        if len(evaluations) == 2:  # at the last step
            os.kill(os.getpid(), signal.SIGTERM)
        return validation()

    lines = []
    assert not run(tmp_path, data=train.Data(batches, signalling, names), log=lines.append)
    assert "stopped by SIGTERM at step 8, state saved" in lines[-1]
    assert run(tmp_path)


class Collapsed(fakes.Normed):
    """The same embedding whatever the clip."""

    @nn.compact
    def __call__(self, clips, train: bool = False):
        logits = nn.Dense(self.num_classes, name="fc")(clips.reshape(clips.shape[0], -1))
        return Outputs(logits, jnp.ones((clips.shape[0], 6)), (clips,))


def test_a_collapse_is_told_once_and_the_progress_line_shows_losses_and_waiting(
    tmp_path, monkeypatch
):
    notes = []
    monkeypatch.setattr(train.Progress, "update", lambda _, count, note="": notes.append(note))

    def two_views(start):
        for batch in batches(start):
            doubled = ("clips", "size", "flip")
            yield batch | {name: np.repeat(batch[name], 2, axis=1) for name in doubled}

    lines = []
    method = Supervised(model=Collapsed(num_classes=4), views=2)
    assert run(tmp_path, data=train.Data(two_views, None, names), log=lines.append, method=method)
    warned = [line for line in lines if "the embedding collapses" in line]
    assert len(warned) == 1 and warned[0].startswith("step 2: warning")
    assert re.fullmatch(r"loss \d\.\d{3}, top1 0\.\d{3}, waiting for data \d+%", notes[-1])


def changed(settings=SETTINGS, **values):
    return train.LoopSettings(**(vars(settings) | values))


def within(start=0, views=1):
    """Batches whose videos are eight in all."""
    for batch in batches(start, views=views):
        yield batch | {"index": batch["index"] % 100}


@pytest.mark.parametrize("replicas,ema_decay", [("pmap", 0.0), ("shard_map", 0.5)])
def test_the_best_judged_weights_become_the_past_teacher(
    tmp_path, monkeypatch, replicas, ema_decay
):
    """Of three evaluations the second is worse than the first, the third better."""
    scores = iter([0.5, 0.25, 0.75])

    def judged(*_):
        result = {"top1": next(scores), "loss": 1.0}
        return result, result if ema_decay else None

    monkeypatch.setattr(train, "evaluation_of", judged)
    settings = changed(total_steps=12, ema_decay=ema_decay, replicas=replicas, keep=10)
    assert run(tmp_path, settings, method="teaching_yourself")
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    part = "ema." if ema_decay else ""
    for number, best in ((2, None), (4, 4), (6, 4), (8, 4), (10, 4), (12, 12)):
        state = checkpoints.restore(number)
        assert state["method_state.ready"] == (best is not None)
        if best is None:
            continue
        chosen = checkpoints.restore(best)
        for name, value in state.items():
            if name.startswith("method_state.past."):
                collection, rest = name.removeprefix("method_state.past.").split(".", 1)
                wanted = chosen[f"{part}{collection}.model.{rest}"]
                np.testing.assert_array_equal(value, wanted, err_msg=name)
    last = checkpoints.restore(12)
    raw, averaged = last["params.model.fc.kernel"], last.get("ema.params.model.fc.kernel")
    assert averaged is None or (raw != averaged).any()


def test_a_past_teacher_without_validation_is_refused(tmp_path):
    with pytest.raises(UserError, match="TeachingYourself .* validation split, and there is none"):
        run(tmp_path, data=train.Data(batches, None, names), method="teaching_yourself")
    assert not list(tmp_path.iterdir())


def test_a_past_teacher_that_no_evaluation_could_give_is_refused(tmp_path):
    with pytest.raises(UserError, match="eval_every is 8 steps, config.train.duration 8; shorten"):
        run(tmp_path, dataclasses.replace(SETTINGS, eval_every=8), method="teaching_yourself")
    assert not list(tmp_path.iterdir())


ON_TOP = methods.create(
    "skd_srl",
    fakes.Normed(num_classes=4),
    projector_out=8,
    predictor_hidden=32,
    past_teacher=0.5,
)


@pytest.mark.parametrize(
    "method,accumulate",
    [("teaching_yourself", 1), ("ps_kd", 2), (ON_TOP, 1)],
    ids=["teaching_yourself", "ps_kd", "skd_srl"],
)
def test_a_run_that_goes_on_ends_in_the_same_state(tmp_path, method, accumulate):
    """Past teacher and memory are part of it; stopped between two evaluations."""
    views = 2 if method is ON_TOP else 1
    data = train.Data(functools.partial(within, views=views), validation, names)
    settings = changed(accumulate=accumulate)
    assert run(tmp_path / "whole", settings, data=data, method=method)

    class Stopped(Exception):
        pass

    def interrupted(start):
        for step, batch in enumerate(within(start, views), start):
            if step == 7:  # prefetched: after the checkpoint of step 6, say
                raise Stopped
            yield batch

    broken = train.Data(interrupted, validation, names)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", settings, data=broken, method=method)
    assert checkpoint.Checkpoints(tmp_path / "cut" / "checkpoints").steps()[-1] < 8
    assert run(tmp_path / "cut", settings, data=data, method=method)
    whole, cut = (
        checkpoint.Checkpoints(tmp_path / folder / "checkpoints").restore(8)
        for folder in ("whole", "cut")
    )
    own = [key for key in whole if key.startswith("method_state.")]
    assert own and any(whole[key].any() for key in own)
    for key, value in whole.items():
        np.testing.assert_array_equal(cut[key], value, err_msg=key)


def test_the_rate_leaves_out_compilation_and_validation(tmp_path, monkeypatch):
    """On a clock that ticks once a look, and jumps where something slow happens."""
    now = 0.0

    def clock():
        nonlocal now
        now += 1.0
        return now

    def slow_validation():
        nonlocal now
        now += 1e6
        return validation()

    class SlowToCompile(Supervised):
        def loss(self, *args, **options):  # traced once
            nonlocal now
            now += 1e6
            return super().loss(*args, **options)

    monkeypatch.setattr(train.time, "monotonic", clock)
    assert run(
        tmp_path,
        data=train.Data(batches, slow_validation, names),
        method=SlowToCompile(model=fakes.Normed(num_classes=4)),
    )
    rows = [r for r in metrics.read_rows(tmp_path / "metrics.jsonl") if r["split"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert now > 3e6
    assert all(row["steps_per_second"] > 0.05 for row in rows), rows
    assert all(0 < row["data_wait"] < 1 for row in rows), rows


def test_the_last_row_has_the_rate_of_its_steps(monkeypatch, tmp_path):
    """Steps of a second; the last one lies behind a logged one, and both are done when they are fetched."""
    now, rows = 0.0, []
    monkeypatch.setattr(train.time, "monotonic", lambda: now)
    settings = dataclasses.replace(SETTINGS, total_steps=11, log_every=5)
    writer = types.SimpleNamespace(write=lambda step, _, values: rows.append((step, values)))
    replicas = types.SimpleNamespace(get=lambda values: values)
    data = train.Data(batches, validation, names)
    steps = train._Steps(data, tmp_path, settings, lambda _: 0.1, writer, print)
    for number in range(1, 12):
        now += 1.0
        steps.add(number, {"loss": 1.0, "grad_norm": 1.0}, np.arange(2))
        steps.drain(replicas, keep=2)
    steps.drain(replicas)
    assert [step for step, _ in rows] == [5, 10, 11]
    rates = [values["steps_per_second"] for _, values in rows]
    # Of the first, two of seven seconds' steps are not fetched yet.
    np.testing.assert_allclose(rates, [5 / 7, 5 / 4, 6 / 4])
