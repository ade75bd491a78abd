"""One replica's step against NumPy: update, accumulation, averages of the weights, evaluation."""

import functools

import jax
import numpy as np
import optax
import pytest

from skd_jax import augment, methods, models, step
from skd_jax.step import StepSettings
from tests.fakes import (
    Linear,
    Normed,
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
    softmax,
)

CLASSIC = augment.AugmentSettings(crop=4)
JITTERED = augment.AugmentSettings(crop=4, brightness=0.4)
CLIP = (2, 4, 4, 3)
SGD = optax.sgd(0.1)


def compiled(method, settings, tx=SGD, augmentation=CLASSIC):
    return jax.jit(
        functools.partial(
            step.train_step, method=method, tx=tx, augmentation=augmentation, settings=settings
        )
    )


def start(method, settings, tx=SGD):
    return step.create_state(method, tx, jax.random.key(0), CLIP, settings)


def close(got, want, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def test_one_update_of_a_linear_classifier():
    method = methods.create("supervised", Linear(), views=2)
    settings = StepSettings(total_steps=10)
    batch = pixel_batch()
    before = start(method, settings)
    after, metrics = compiled(method, settings)(before, batch)
    clips = augment.train_clips(batch["clips"], batch["size"], batch["flip"], batch["key"], CLASSIC)
    x = np.asarray(clips, np.float64).reshape(8, 2, -1)
    kernel = np.asarray(before.params["model"]["fc"]["kernel"], np.float64)
    error = softmax(x @ kernel) - np.eye(4)[batch["label"]][:, None]
    gradient = np.einsum("bvd,bvk->dk", x, error) / 16
    close(after.params["model"]["fc"]["kernel"], kernel - 0.1 * gradient, rtol=1e-3)
    close(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-3)
    assert int(after.step) == 1 and after.ema is None
    assert jax.tree.structure(after) == jax.tree.structure(before)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing_without_batch_norm(parts):
    method = methods.create("supervised", Linear(), views=2)
    batch = pixel_batch()
    whole, cut = StepSettings(10), StepSettings(10, accumulate=parts)
    state = start(method, whole)
    want, want_metrics = compiled(method, whole, augmentation=JITTERED)(state, batch)
    got, got_metrics = compiled(method, cut, augmentation=JITTERED)(state, batch)
    close(got, want, rtol=1e-4, atol=1e-5)
    for name in ("loss", "top1", "grad_norm"):
        close(got_metrics[name], want_metrics[name])


def test_accumulation_updates_the_running_statistics_once_for_each_part():
    method = methods.create("supervised", Normed())
    batch = pixel_batch(views=1)
    settings = StepSettings(10, accumulate=2)
    before = start(method, settings)
    after, _ = compiled(method, settings)(before, batch)
    clips = augment.train_clips(batch["clips"], batch["size"], batch["flip"], batch["key"], CLASSIC)
    stem = before.params["model"]["stem"]
    kernel, bias = np.asarray(stem["kernel"], np.float64), np.asarray(stem["bias"])
    x = np.asarray(clips).reshape(2, 4, -1) @ kernel + bias
    want = 0.9 * 0.1 * x[0].mean(0) + 0.1 * x[1].mean(0)
    close(after.batch_stats["model"]["bn"]["mean"], want, rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_cut():
    method = methods.create("supervised", Linear(), views=2)
    settings = StepSettings(10, accumulate=3)
    with pytest.raises(ValueError, match="batch of 8 cannot be cut into 3 equal parts"):
        jax.eval_shape(compiled(method, settings), start(method, settings), pixel_batch())


def test_moving_average_of_weights_and_statistics():
    method = methods.create("supervised", Normed(), views=2)
    settings = StepSettings(total_steps=10, ema_decay=0.15)
    run = compiled(method, settings)
    state = start(method, settings)
    want = state.variables
    close(state.ema, want)
    for number, decay in enumerate((1 / 10, 0.15, 0.15)):  # (1 + 1) / (10 + 1) is above 0.15
        state, _ = run(state, pixel_batch(seed=number))
        want = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, want, state.variables)
        close(state.ema, want)


def test_randomness_follows_seed_and_step():
    method = methods.create("supervised", Normed(dropout=0.5, width=32), views=2)
    batch = pixel_batch()

    def losses(seed, *steps):
        settings = StepSettings(10, seed=seed)
        state, run = start(method, settings), compiled(method, settings)
        return [float(run(state.replace(step=np.int32(n)), batch)[1]["loss"]) for n in steps]

    first, again, later = losses(0, 0, 0, 1)
    assert first == again
    assert len({first, later, *losses(1, 0)}) == 3


def test_method_learns_the_share_of_training_done():
    seen = []

    class Spy(type(methods.create("supervised", Linear()))):
        def loss(self, variables, batch, state, rng, progress, axis_name):
            jax.debug.callback(lambda value: seen.append(float(value)), progress)
            return super().loss(variables, batch, state, rng, progress, axis_name)

    method = Spy(Linear())
    settings = StepSettings(total_steps=4)
    run = compiled(method, settings)
    state, _ = run(start(method, settings), pixel_batch(views=1))
    run(state, pixel_batch(views=1))
    jax.effects_barrier()
    assert seen == [0.0, 0.25]


def test_evaluation_averages_the_probabilities_of_the_clips():
    method = methods.create("supervised", Normed())
    variables = start(method, StepSettings(1)).variables
    batch = pixel_batch(views=3)
    got = jax.jit(functools.partial(step.eval_step, method=method, augmentation=CLASSIC))(
        variables, batch
    )
    clips = augment.eval_clips(batch["clips"], batch["size"], CLASSIC)
    own = {collection: trees["model"] for collection, trees in variables.items()}
    per_view = [softmax(Normed().apply(own, clips[:, view]).logits) for view in range(3)]
    close(got["probabilities"], np.mean(per_view, axis=0))
    for name in ("label", "index", "mask"):
        np.testing.assert_array_equal(got[name], batch[name])


def test_averages_do_not_share_memory_with_the_weights():
    """The step's old state is donated: one buffer given twice is an error on accelerators."""
    state = start(methods.create("supervised", Normed()), StepSettings(1, ema_decay=0.9))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.variables, state.ema))]
    assert len(set(pointers)) == len(pointers)


def test_bfloat16_computes_in_half_and_keeps_everything_else_in_float32():
    settings = StepSettings(total_steps=10, ema_decay=0.9)
    batch = pixel_batch(frames=2, canvas=16)
    results = {}
    for dtype in ("float32", "bfloat16"):
        model = models.create("r3d_10", 4, width=0.0625, dtype=dtype)
        method = methods.create("skd_srl", model, projector_out=8, predictor_hidden=32)
        crop = augment.AugmentSettings(crop=16)
        state = step.create_state(method, SGD, jax.random.key(0), (2, 16, 16, 3), settings)
        state, metrics = compiled(method, settings, augmentation=crop)(state, batch)
        floats = [x for x in jax.tree.leaves((state, metrics)) if x.dtype != np.int32]
        assert {x.dtype for x in floats} == {np.dtype("float32")}
        assert all(np.isfinite(x).all() for x in floats)
        results[dtype] = metrics["loss"]
    assert results["bfloat16"] != results["float32"], "nothing was computed in bfloat16"
    np.testing.assert_allclose(results["bfloat16"], results["float32"], rtol=0.05)
