"""SSKD and HSAKD, which also learn from turned clips, against NumPy."""

import functools

import jax
import numpy as np
import pytest

from skd_jax import augment, optim, step
from skd_jax.step import StepSettings
from tests.fakes import (
    kl,
    log_softmax,
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
)
from tests.losses.test_rotations import kept
from tests.methods import teachers
from tests.methods.teachers import BATCH, STUDENT, TEACHER, create, outputs, start

TURNED = np.stack([np.rot90(BATCH["clips"][:, 0], k, (2, 3)) for k in range(4)], axis=1)
FLAT = np.ascontiguousarray(TURNED.reshape(-1, 2, 4, 4, 3))


def pair(variables, state):
    own = {collection: trees["model"] for collection, trees in variables.items()}
    return outputs(STUDENT, own, FLAT, True), outputs(TEACHER, state["teacher"], FLAT, False)


def cross_entropy(logits, labels):
    return -np.take_along_axis(log_softmax(logits), labels[:, None], 1).mean()


def mlp(params, x):
    def linear(layer, x):
        fc = params[layer]["fc"]
        return x @ np.asarray(fc["kernel"], np.float64) + fc["bias"]

    return linear("fc2", np.maximum(linear("fc1", x), 0))


def contrast(z):
    z = (z / np.linalg.norm(z, axis=-1, keepdims=True)).reshape(-1, 4, z.shape[-1])
    return z[:, 1:].reshape(-1, z.shape[-1]) @ z[:, 0].T


def test_sskd_follows_the_equations():
    method = create("sskd", keep_turned=0.5, temperature=3.0)
    variables, state = start(method)
    value, (metrics, _, _) = jax.jit(lambda v: teachers.loss(method, v, state))(variables)
    student, teacher = pair(variables, state)
    label, aside = BATCH["label"], np.arange(len(FLAT)) % 4 != 0
    own = contrast(mlp(variables["params"]["projector"], student.embedding))
    theirs = contrast(mlp(variables["params"]["teacher_projector"], teacher.embedding))
    source, labels = np.repeat(np.arange(6), 3), np.repeat(label, 3)
    s, t = student.logits, teacher.logits
    turned = 9 * kl(s[aside], t[aside], 3.0)[kept(t[aside], labels, 0.5)]
    alike = 0.25 * kl(own, theirs, 0.5)[kept(theirs, source, 0.75)]
    want = {
        "ce": (0.1, cross_entropy(s[::4], label)),
        "kd": (0.9, 9 * kl(s[::4], t[::4], 3.0).mean()),
        "turned": (2.7, turned.mean()),
        "contrast": (10.0, alike.mean()),
        "head": (1.0, cross_entropy(theirs, source)),
    }
    for name, (_, term) in want.items():
        assert term > 1e-4
        np.testing.assert_allclose(metrics[f"loss_{name}"], term, rtol=2e-3)
    np.testing.assert_allclose(value, sum(w * x for w, x in want.values()), rtol=2e-3)
    np.testing.assert_allclose(metrics["top1"], (s[::4].argmax(1) == label).mean(), rtol=1e-6)


def test_hsakd_follows_the_equations():
    method = create("hsakd", lambda_joint=0.7)
    variables, state = start(method)
    value, (metrics, _, _) = jax.jit(lambda v: teachers.loss(method, v, state))(variables)
    student, teacher = pair(variables, state)
    logits = {}
    for prefix, found in (("branch", student), ("teacher_branch", teacher)):
        networks = method.networks(student, teacher, None)
        for i in (0, 1):
            module, _ = networks[f"{prefix}{i}"]
            trees = {c: variables[c][f"{prefix}{i}"] for c in variables}
            maps = found.maps[i].astype(np.float32)
            out, _ = module.apply(trees, maps, train=True, mutable=["batch_stats"])
            assert out.shape == (24, 16)
            logits[f"{prefix}{i}"] = np.asarray(out, np.float64)
    joint = (4 * BATCH["label"][:, None] + np.arange(4)).reshape(-1)
    want = {
        "ce": (1.0, cross_entropy(student.logits[::4], BATCH["label"])),
        "kd": (1.0, 9 * kl(student.logits, teacher.logits, 3.0).mean()),
        "joint": (
            0.7,
            sum(
                9 * kl(logits[f"branch{i}"], logits[f"teacher_branch{i}"], 3.0).mean()
                for i in (0, 1)
            ),
        ),
        "head": (1.0, sum(cross_entropy(logits[f"teacher_branch{i}"], joint) for i in (0, 1))),
    }
    for name, (_, term) in want.items():
        assert term > 1e-4
        np.testing.assert_allclose(metrics[f"loss_{name}"], term, rtol=2e-3)
    np.testing.assert_allclose(value, sum(w * x for w, x in want.values()), rtol=2e-3)


def test_branches_continue_as_the_stages_do():
    method = create("hsakd")
    shapes = jax.eval_shape(method.init, jax.random.key(0), BATCH["clips"][:, 0])
    student, teacher = (
        jax.eval_shape(lambda m=m: m.init_with_output(jax.random.key(0), FLAT)[0])
        for m in (STUDENT, TEACHER)
    )
    networks = method.networks(student, teacher, None)
    branch, last = networks["branch0"][0], networks["teacher_branch1"][0]
    assert (branch.channels, branch.strides) == ((5,), ((1, 2, 2),))
    assert (last.channels, last.strides) == ((6,), ((1, 1, 1),))
    assert shapes["params"]["branch0"]["fc"]["kernel"].shape == (5, 16)


@pytest.mark.parametrize("name,term", [("sskd", "contrast"), ("hsakd", "joint")])
def test_the_head_teaches_once_it_has_learnt(name, term):
    method = create(name, head_share=0.4)
    variables, state = start(method)
    run = jax.jit(lambda progress: teachers.loss(method, variables, state, progress=progress)[::1])
    (early, (metrics, _, _)), (late, _) = run(0.39), run(0.4)
    share = {"contrast": 10.0, "joint": 1.0}[term] * metrics[f"loss_{term}"]
    assert share > 0.01
    np.testing.assert_allclose(late - early, share, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name,waiting", [("sskd", "projector"), ("hsakd", "branch")])
def test_a_head_that_nothing_reaches_yet_stays_as_it_began(name, waiting):
    # Weight decay would take it towards zero: by 5e-4 of the rate at every step.
    method = create(name, head_share=0.5)
    settings = StepSettings(total_steps=4)
    tx = optim.optimiser(optim.OptimSettings(learning_rate=0.5, weight_decay=0.1), 4)
    state = step.create_state(method, tx, jax.random.key(0), (2, 4, 4, 3), settings)
    run = jax.jit(
        functools.partial(
            step.train_step,
            method=method,
            tx=tx,
            augmentation=augment.AugmentSettings(crop=4),
            settings=settings,
        )
    )

    def kernels(state, prefix):
        trees = {n: tree for n, tree in state.params.items() if n.startswith(prefix)}
        assert trees
        return [np.asarray(x) for x in jax.tree.leaves(trees) if x.ndim > 1]

    states = [state]
    for _ in range(3):
        states.append(run(states[-1], pixel_batch(views=1))[0])
    for old, new, moves in zip(states[:-1], states[1:], (False, False, True), strict=True):
        pairs = zip(kernels(old, waiting), kernels(new, waiting), strict=True)
        assert [bool((a != b).any()) for a, b in pairs] == [moves] * len(kernels(old, waiting))
        learning = zip(kernels(old, "teacher"), kernels(new, "teacher"), strict=True)
        assert all((a != b).any() for a, b in learning)
