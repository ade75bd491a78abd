"""Schedules at their corners, and the optimisers' first steps in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skd_jax import durations, optim
from skd_jax.errors import UserError
from skd_jax.optim import OptimSettings

RNG = np.random.default_rng(0)
PARAMS = {
    "model": {
        "conv": RNG.normal(size=(2, 3)).astype(np.float32),
        "bias": RNG.normal(size=3).astype(np.float32),
    },
    "predictor": {"kernel": RNG.normal(size=(3, 2)).astype(np.float32)},
}
GRADS = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), PARAMS)
ZEROS = jax.tree.map(np.zeros_like, PARAMS)


def close(got, want, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def run(tx, grads, steps=1, params=PARAMS):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def moved(params):
    return jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), params, PARAMS)


@pytest.mark.parametrize(
    "options,total,points",
    [
        ({}, 100, {0: 1.0, 50: 0.5, 25: (1 + np.cos(np.pi / 4)) / 2, 100: 0.0, 120: 0.0}),
        ({"warmup_steps": 10}, 110, {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.5, 110: 0.0}),
        ({"warmup_steps": 10}, 10, {0: 0.0, 9: 0.9, 10: 1.0}),
        ({"schedule": "constant"}, 10, {0: 1.0, 9: 1.0}),
        ({"schedule": "constant", "warmup_steps": 4}, 10, {0: 0.0, 3: 0.75, 4: 1.0, 9: 1.0}),
        (
            {"schedule": "step", "boundaries": (30, 60)},
            100,
            {0: 1.0, 29: 1.0, 30: 0.1, 59: 0.1, 60: 0.01, 99: 0.01},
        ),
        (
            {"schedule": "step", "boundaries": (30, 60), "warmup_steps": 10, "decay": 0.5},
            100,
            {0: 0.0, 9: 0.9, 10: 1.0, 29: 1.0, 30: 0.5, 60: 0.25},
        ),
    ],
)
def test_schedule_at_its_corners(options, total, points):
    rate = optim.schedule(OptimSettings(learning_rate=2.0, **options), total)
    got = {step: float(rate(step)) for step in points}
    assert got == pytest.approx({step: 2.0 * value for step, value in points.items()}, abs=1e-6)


def test_boundaries_within_the_warm_up_all_count():
    settings = OptimSettings(
        learning_rate=1.0, schedule="step", boundaries=(2, 4, 8), warmup_steps=6
    )
    rate = optim.schedule(settings, 10)
    assert [float(rate(step)) for step in (7, 9)] == pytest.approx([0.01, 0.001], rel=1e-5)


def test_warm_up_longer_than_the_training():
    with pytest.raises(UserError, match="warmup lasts 20 steps, the whole training 10"):
        optim.schedule(OptimSettings(warmup_steps=20), 10)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"name": "sgdd"}, "unknown optimiser 'sgdd'; did you mean 'sgd'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
    ],
)
def test_unknown_names(options, message):
    with pytest.raises(UserError, match=message):
        optim.optimiser(OptimSettings(**options), 10)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("constant", [(), ("predictor",)])
def test_weight_decay_moves_kernels_only(name, constant):
    settings = OptimSettings(name=name, weight_decay=0.1, schedule="constant")
    got = moved(run(optim.optimiser(settings, 10, constant), ZEROS))
    assert got == {"model": {"conv": True, "bias": False}, "predictor": {"kernel": True}}
    settings = OptimSettings(name=name, weight_decay=0.0, schedule="constant")
    assert not any(jax.tree.leaves(moved(run(optim.optimiser(settings, 10, constant), ZEROS))))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_nesterovs_with_l2(momentum):
    """As torch.optim.SGD: v = m v + g + wd p;  p -= lr (g + wd p + m v)."""
    settings = OptimSettings(
        learning_rate=0.1, momentum=momentum, weight_decay=0.01, schedule="constant"
    )
    want = jax.tree.map(lambda x: x.astype(np.float64), PARAMS)
    velocity = jax.tree.map(np.zeros_like, want)
    for _ in range(3):
        grads = jax.tree.map(lambda g, p: g + (0.01 * p if p.ndim > 1 else 0), GRADS, want)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
        want = jax.tree.map(lambda p, g, v: p - 0.1 * (g + momentum * v), want, grads, velocity)
    close(run(optim.optimiser(settings, 10), GRADS, steps=3), want, rtol=1e-5, atol=1e-6)


def test_first_step_of_adamw():
    settings = OptimSettings("adamw", learning_rate=0.1, weight_decay=0.01, schedule="constant")
    want = jax.tree.map(
        lambda p, g: p - 0.1 * (np.sign(g) + (0.01 * p if p.ndim > 1 else 0)), PARAMS, GRADS
    )
    close(run(optim.optimiser(settings, 10), GRADS), want, rtol=1e-4, atol=1e-5)


def test_first_step_of_lars():
    """Kernels: lr * 0.001 |p| / |g + wd p| (You et al., 2017); others plain SGD."""
    settings = OptimSettings("lars", learning_rate=10.0, weight_decay=0.01, schedule="constant")

    def step(p, g):
        if p.ndim == 1:
            return p - 10.0 * g
        g = g + 0.01 * p
        return p - 10.0 * 0.001 * np.linalg.norm(p) / np.linalg.norm(g) * g

    want = jax.tree.map(step, PARAMS, GRADS)
    close(run(optim.optimiser(settings, 10), GRADS), want, rtol=1e-4, atol=1e-5)


def test_constant_networks_keep_the_peak_from_first_step_to_last():
    settings = OptimSettings(learning_rate=0.1, momentum=0.0, weight_decay=0.0, warmup_steps=4)
    tx = optim.optimiser(settings, 8, constant=("predictor",))
    rate = optim.schedule(settings, 8)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for step in range(8):
        updates, state = update(GRADS, state, PARAMS)
        close(updates["predictor"], {"kernel": -0.1 * GRADS["predictor"]["kernel"]}, rtol=1e-5)
        now = float(rate(step))
        want = jax.tree.map(lambda g, now=now: -now * g, GRADS["model"])
        close(updates["model"], want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("clip_norm,scale", [(1.0, None), (1e6, 1.0), (0.0, 1.0)])
def test_gradient_clipping_by_the_global_norm(clip_norm, scale):
    settings = OptimSettings(
        learning_rate=1.0, momentum=0, weight_decay=0, schedule="constant", clip_norm=clip_norm
    )
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(GRADS)))
    scale = scale or clip_norm / norm
    got = run(optim.optimiser(settings, 10, constant=("predictor",)), GRADS)
    close(got, jax.tree.map(lambda p, g: p - scale * g, PARAMS, GRADS), rtol=1e-5, atol=1e-6)


def test_decay_mask():
    assert optim.decays({"a": jnp.ones((1, 2)), "b": jnp.ones(3), "c": jnp.ones(())}) == {
        "a": True,
        "b": False,
        "c": False,
    }


@pytest.mark.parametrize(
    "text,steps",
    [
        (7, 7),
        ("7", 7),
        ("7 steps", 7),
        (" 1 step ", 1),
        ("25 epochs", 312),
        ("1 epoch", 12),
        ("0.5 epochs", 6),
        ("0 epochs", 0),
    ],
)
def test_durations(text, steps):
    assert durations.steps(text, 12.5) == pytest.approx(steps, abs=0.5)
    assert isinstance(durations.steps(text, 12.5), int)


@pytest.mark.parametrize(
    "text", ["", "ten epochs", "5 days", "epochs", "1 2 3", None, 2.5, "inf epochs"]
)
def test_a_duration_that_is_none(text):
    with pytest.raises(UserError, match="config.train.duration: .* is no duration; write e.g."):
        durations.steps(text, 12.5, "train.duration")
