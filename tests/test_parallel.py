"""Replicas: pmap equals shard_map, and one device equals four.

As a script this file runs what is compared and writes it down; the tests run it again in a process
with four fake CPU devices: python tests/test_parallel.py OUT.npz
"""

import functools
import sys
import time

import jax
import numpy as np
import optax
import pytest

from skd_jax import augment, checkpoint, evaluate, losses, methods, parallel, rows, step
from skd_jax.errors import UserError
from tests.devices import compare, outcome, part
from tests.fakes import (
    Normed,
    cosine,
    kl,
    log_softmax,
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
)

LOGITS = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32)
LABELS = np.arange(8) % 5
AUGMENTATION = augment.AugmentSettings(crop=4, brightness=0.4)


def train(name: str, sync: bool = True, steps: int = 2, method=None) -> tuple[dict, dict]:
    """(flat state, metrics of the last step) after some steps, of SKD-SRL if nothing else is said."""
    # Few hidden units may all be off for an example: at p = 0 the cosine's gradient is so steep that
    # rounding decides the step.
    method = method or methods.create(
        "skd_srl", Normed(), projector_out=8, predictor_hidden=32, sync_batch_norm=sync
    )
    settings = step.StepSettings(total_steps=4, ema_decay=0.9)
    tx = optax.sgd(0.05, momentum=0.9, nesterov=True)
    replicas = parallel.create(name)
    run = replicas.train(
        functools.partial(
            step.train_step, method=method, tx=tx, augmentation=AUGMENTATION, settings=settings
        )
    )
    state = step.create_state(method, tx, jax.random.key(0), (2, 4, 4, 3), settings)
    state = replicas.put(state)
    for number in range(steps):
        old = state
        state, metrics = run(old, replicas.shard(pixel_batch(seed=number, views=method.num_views)))
        # Their memory has become the new state's.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    whole = state.replace(method_state={})  # tables are divided
    copies = [[s.data for s in x.addressable_shards] for x in jax.tree.leaves(whole)]
    for first, *others in copies:
        for other in others:
            np.testing.assert_array_equal(first, other)
    return checkpoint.flatten(replicas.get(state)), replicas.get(metrics)


def score(name: str) -> evaluate.Scores:
    """Scores of ten videos in padded batches of eight."""
    method = methods.create("supervised", Normed())
    variables = jax.jit(method.init)(jax.random.key(0), np.zeros((1, 2, 4, 4, 3), np.float32))
    replicas = parallel.create(name)
    run = replicas.evaluate(
        functools.partial(step.eval_step, method=method, augmentation=AUGMENTATION)
    )
    first, second = pixel_batch(seed=1), pixel_batch(seed=2)
    # Padding repeats a row that was counted, with another label: only the mask tells.
    second |= {"index": np.array([9, 8, *[0] * 6]), "mask": np.arange(8) < 2}
    return evaluate.score(run, replicas, replicas.put(variables), [first, second])


def pmapped_losses() -> dict[str, np.ndarray]:
    """Each loss under pmap, the batch cut over all devices."""

    def run(loss, *arrays):
        count = jax.device_count()
        arrays = [a.reshape(count, a.shape[0] // count, *a.shape[1:]) for a in arrays]
        return np.asarray(jax.pmap(loss)(*arrays)).reshape(-1)

    first, second, _ = LOGITS
    return {
        "cross_entropy": run(losses.cross_entropy, first, LABELS),
        "distillation": run(lambda a, b: losses.soft_label_distillation(a, b, 2.0), first, second),
        "similarity": run(losses.siamese_similarity, first, second),
    }


def everything(names) -> dict[str, np.ndarray]:
    """All of it under flat names; `names` are the kinds of replicas."""
    found = {"devices": np.int64(jax.device_count())}
    for name in names:
        state, metrics = train(name)
        found |= {f"{name}/state/{key}": value for key, value in state.items()}
        found |= {f"{name}/metrics/{key}": value for key, value in metrics.items()}
        # Ten rows over four devices leave two to spare.
        memory = methods.create("ps_kd", Normed(), views=2, num_videos=10)
        state, _ = train(name, steps=3, method=memory)
        found |= {f"{name}/memory/{key}": value for key, value in state.items()}
        scores = score(name)
        found |= {f"{name}/scores/{key}": value for key, value in vars(scores).items()}
    state, _ = train("pmap", sync=False, steps=1)
    found |= {f"apart/{key}": value for key, value in state.items()}
    return found | {f"losses/{key}": value for key, value in pmapped_losses().items()}


@pytest.fixture(scope="module")
def one() -> dict[str, np.ndarray]:
    return everything(["pmap"])


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> dict[str, np.ndarray]:
    return outcome(__file__, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
@pytest.mark.parametrize("what", ["state", "metrics", "scores", "memory"])
def test_four_devices_equal_one(one, four, name, what):
    """Parameters, statistics, momenta and averages, a divided table; the gradient's norm."""
    assert four["devices"] == 4 and one["devices"] == 1
    compare(part(four, f"{name}/{what}/"), part(one, f"pmap/{what}/"))


def test_the_divided_table_holds_every_row(four):
    table = four["pmap/memory/method_state.predictions.values"]
    assert table.shape == (10, 4)
    np.testing.assert_allclose(table.sum(1), np.arange(10) < 8, rtol=1e-5)


def test_pmap_equals_shard_map(four):
    compare(part(four, "shard_map/"), part(four, "pmap/"), rtol=1e-4, atol=1e-6)


def test_every_video_is_scored_once(four):
    for name in ("pmap", "shard_map"):
        scores = part(four, f"{name}/scores/")
        np.testing.assert_array_equal(scores["index"], np.arange(10))
        batches = pixel_batch(seed=1), pixel_batch(seed=2)
        want = np.concatenate([b["label"][:n] for b, n in zip(batches, (8, 2), strict=True)])
        order = np.concatenate([batches[0]["index"], [9, 8]])
        np.testing.assert_array_equal(scores["label"], want[np.argsort(order)])
        np.testing.assert_allclose(scores["probabilities"].sum(1), np.ones(10), rtol=1e-5)


def test_batch_norm_of_one_replica_alone(one, four):
    """Statistics of two videos differ from those of eight; the running mean is the same."""
    apart, together = part(four, "apart/"), part(one, "apart/")
    mean, var = (f"batch_stats.model.bn.{name}" for name in ("mean", "var"))
    np.testing.assert_allclose(apart[mean], together[mean], rtol=1e-3, atol=1e-5)
    assert (apart[var] < together[var]).all()  # the spread between replicas is missing
    kernel = "params.model.stem.kernel"
    assert abs(apart[kernel] - together[kernel]).max() > 1e-4


def test_pmapped_losses(four):
    first, second, _ = LOGITS
    want = {
        "cross_entropy": -log_softmax(first)[np.arange(8), LABELS],
        "distillation": kl(first, second, 2.0),
        "similarity": -cosine(first, second),
    }
    compare(part(four, "losses/"), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_put_and_get_return_the_tree(name):
    replicas = parallel.create(name)
    tree = {"a": np.arange(3.0, dtype=np.float32), "b": [np.int32(4)], "c": None, "d": {}}
    got = replicas.get(replicas.put(tree))
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, got, tree)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_an_update_sees_one_replica(name):
    replicas = parallel.create(name)

    def add(tree, variables, times):
        assert tree["a"].shape == (3,) and variables.shape == ()
        return {"a": tree["a"] + times * variables, "memory": tree["memory"]}

    tree = {"a": np.arange(3, dtype=np.float32), "memory": rows.empty(5, 2)}
    placed = replicas.put(tree)
    got = replicas.get(replicas.update(add)(placed, replicas.put(np.float32(2)), 3))
    np.testing.assert_array_equal(got["a"], [6, 7, 8])
    assert got["memory"].values.shape == (5, 2)
    assert placed["a"].is_deleted()


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_batches_lie_on_the_devices_before_the_step_is_called(name):
    """As they are: clips cross as bytes. The step itself then sends nothing."""
    replicas, batch = parallel.create(name), pixel_batch()
    run = replicas.train(lambda state, batch, axis_name: (state + 1, batch["clips"].sum()))
    state = replicas.put(np.zeros((), np.float32))
    placed = replicas.shard(batch)
    assert batch["clips"].dtype == np.uint8
    for key, leaf in placed.items():
        assert isinstance(leaf, jax.Array) and leaf.committed, key
        assert leaf.dtype == batch[key].dtype and leaf.nbytes == batch[key].nbytes, key
    state, _ = run(state, placed)
    with jax.transfer_guard("disallow"):
        state, total = run(state, placed)
    assert replicas.get(state) == 2
    assert replicas.get(total) == batch["clips"].sum(dtype=np.uint32)


def test_mean_over_replicas():
    """Leaves of two dtypes, a scalar and an empty one; one reduction for each dtype."""
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.normal(size=(4, 3, 2)).astype(np.float32),
        "b": [rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float16)],
        "c": {"d": np.zeros((4, 0), np.float32)},
    }
    mean = functools.partial(parallel.mean_over_replicas, axis_name="batch")
    got = jax.vmap(mean, axis_name="batch")(tree)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    for found, leaf in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        assert found.dtype == leaf.dtype and found.shape == leaf.shape
        want = np.broadcast_to(leaf.astype(np.float64).mean(0), leaf.shape)
        np.testing.assert_allclose(found, want, rtol=2e-3, atol=1e-3)
    one = jax.tree.map(lambda leaf: leaf[0], tree)
    program = str(jax.make_jaxpr(mean, axis_env=[("batch", 4)])(one))
    assert program.count(" psum[") == 2
    alone = jax.make_jaxpr(mean, axis_env=[("batch", 1)])(one)
    assert alone.eqns == []


def test_unknown_replicas():
    with pytest.raises(UserError, match=r"config.train.replicas 'pmapp'; did you mean 'pmap'\?"):
        parallel.create("pmapp")


@pytest.mark.parametrize(
    "batch_size,accumulate,message",
    [
        (
            10,
            1,
            r"config.train.batch_size=10 does not divide over 4 device\(s\); .* of 4, such as 8$",
        ),
        (2, 1, r"take a multiple of 4, such as 4$"),
        (0, 1, r"such as 4$"),
        (12, 2, r"4 device\(s\) x 2 micro-batches; take a multiple of 8, such as (8|16)$"),
    ],
)
def test_batch_size_that_does_not_divide(monkeypatch, batch_size, accumulate, message):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    parallel.check_batch_size(16, 2)
    with pytest.raises(UserError, match=message):
        parallel.check_batch_size(batch_size, accumulate)


@pytest.mark.parametrize(
    "batch_size,accumulate,least,enough",
    [
        (4, 1, (1, 1), None),
        (8, 1, (2, 2), None),
        (4, 1, (2, 2), 8),
        (8, 2, (2, 2), 16),
        (4, 1, (1, 3), None),
    ],
)
def test_a_batch_with_nothing_to_compare(monkeypatch, batch_size, accumulate, least, enough):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    if enough is None:
        return parallel.check_compared("some", batch_size, accumulate, least)
    with pytest.raises(UserError, match=rf"^some compares .* take a batch of {enough} or more$"):
        parallel.check_compared("some", batch_size, accumulate, least)
    return parallel.check_compared("some", enough, accumulate, least)


def test_a_single_device_needs_as_many_as_a_loss_compares(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(UserError, match="take a batch of 6 or more"):
        parallel.check_compared("rkd", 4, 2, (1, 3))
    parallel.check_compared("rkd", 6, 2, (1, 3))


def test_prefetch_keeps_the_order_and_runs_ahead():
    placed = []

    def place(batch):
        placed.append(batch)
        return -batch

    batches = parallel.prefetch(iter(range(5)), place, depth=2)
    assert next(batches) == (0, 0) and placed == [0, 1, 2]
    assert list(batches) == [(i, -i) for i in range(1, 5)] and placed == [0, 1, 2, 3, 4]
    assert list(parallel.prefetch([], place)) == []


@pytest.mark.parametrize(
    "flags,message",
    [
        ((None, 2, None, False), "--num_processes and --process_id need --coordinator"),
        ((None, None, 0, False), "--num_processes and --process_id need --coordinator"),
        (("localhost:1", 2, None, False), "--coordinator needs --num_processes and --process_id"),
    ],
)
def test_process_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError, match=message):
        parallel.start_processes(*flags)


def test_single_process_starts_nothing(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("joined"))
    parallel.start_processes(None, None, None, False)


def test_first_process_result_and_failure_when_alone():
    assert parallel.on_first(lambda: 7) == 7
    with pytest.raises(KeyError):
        parallel.on_first(lambda: {}["missing"])


def processes(monkeypatch, index, said):
    """Makes this process number `index` of two; what process 0 tells goes to or comes from `said`."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)

    def broadcast(value):
        if index:
            return said.pop(0)
        said.append(int(value))
        return value

    monkeypatch.setattr(parallel.multihost_utils, "broadcast_one_to_all", broadcast)


@pytest.mark.parametrize("fails", [False, True])
def test_others_wait_for_the_first_process_however_long_it_takes(monkeypatch, fails):
    """In short waits, since a collective gives up after half an hour."""
    said = []
    monkeypatch.setattr(parallel, "_HEARTBEAT", 0.01)
    with monkeypatch.context() as first:
        processes(first, 0, said)

        def action():
            while len(said) < 3:
                time.sleep(0.001)
            return {}["missing"] if fails else 7

        if fails:
            with pytest.raises(KeyError):
                parallel.on_first(action)
        else:
            assert parallel.on_first(action) == 7
    assert len(said) >= 4 and set(said[:-1]) == {said[0]} != {said[-1]}
    processes(monkeypatch, 1, said)
    if fails:
        with pytest.raises(UserError, match="process 0 has failed"):
            parallel.on_first(lambda: pytest.fail("ran in the second process"))
    else:
        assert parallel.on_first(lambda: pytest.fail("ran in the second process")) is None
    assert not said


if __name__ == "__main__":
    np.savez(sys.argv[1], **everything(["pmap", "shard_map"]))
