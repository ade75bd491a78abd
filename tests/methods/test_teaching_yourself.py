"""Teaching Yourself against NumPy, alone and on top of SKD-SRL."""

import jax
import numpy as np
import pytest

from skd_jax import methods
from skd_jax.errors import UserError
from tests.fakes import (
    Normed,
    float_batch,
    kl,
    quick_compilation,  # noqa: F401  a fixture
    variables_of,
)
from tests.methods.objectives import close, evaluate, gradient, largest, passes

BATCH = float_batch()
METHODS = {
    "teaching_yourself": {"views": 2, "temperature": 3.0, "lambda_kd": 0.5, "scale_by_t2": True},
    "skd_srl": {
        "projector_out": 8,
        "temperature": 3.0,
        "scale_by_t2": True,
        "past_teacher": 0.5,
    },
}
TERM = {"teaching_yourself": "loss_kd", "skd_srl": "loss_past"}


@pytest.fixture(scope="module", params=sorted(METHODS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def method(name):
    return methods.create(name, Normed(), **METHODS[name])


@pytest.fixture(scope="module")
def variables(method):
    return variables_of(method, BATCH["clips"][:1, 0])


@pytest.fixture(scope="module")
def past(method, variables):
    """State with another network as the past self."""
    best = variables_of(method, BATCH["clips"][:1, 0], seed=7)
    best = best | {"batch_stats": jax.tree.map(lambda x: x + 0.5, best["batch_stats"])}
    return best, method.after_evaluation(method.init_state(variables), best, True)


def test_without_a_past_there_is_no_teacher(name, method, variables):
    _, metrics, _, state = evaluate(method, variables, BATCH)
    assert metrics[TERM[name]] == 0.0 and state["ready"] == 0.0
    without = {"past_teacher": 0.0} if name == "skd_srl" else {"lambda_kd": 0.0}
    plain = methods.create(name, Normed(), **METHODS[name] | without)
    np.testing.assert_allclose(metrics["loss"], evaluate(plain, variables, BATCH)[0], rtol=1e-6)


def test_the_past_teaches_by_its_running_statistics(name, method, variables, past):
    best, state = past
    loss, metrics, _, after = evaluate(method, variables, BATCH, state)
    q, _, _ = passes(variables, BATCH["clips"], together=False)
    own = {collection: trees["model"] for collection, trees in best.items()}
    taught = [Normed().apply(own, BATCH["clips"][:, view]).logits for view in (0, 1)]
    want = np.mean([9 * kl(q[:, v], taught[v], 3.0).mean() for v in (0, 1)])
    np.testing.assert_allclose(metrics[TERM[name]], want, rtol=1e-3)
    before = evaluate(method, variables, BATCH)[0]
    np.testing.assert_allclose(loss, before + 0.5 * want, rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_term_trains_the_classifier(method, variables, past):
    with_it = gradient(method, variables, BATCH, past[1])
    without = gradient(method, variables, BATCH)
    difference = jax.tree.map(np.subtract, with_it, without)
    assert all(largest(difference["model"][layer]) > 1e-4 for layer in ("stem", "fc"))
    assert largest({k: v for k, v in difference.items() if k != "model"} or [np.zeros(1)]) < 1e-6


def test_no_gradient_reaches_the_past(method, variables, past):
    def loss(state):
        key = jax.random.key(1)
        return method.loss(variables, BATCH, state, key, np.float32(0), None)[0]

    gradients = jax.jit(jax.grad(loss))(past[1])
    assert largest(gradients["past"]) == 0.0


def test_only_an_improvement_swaps_the_teacher(method, variables, past):
    best, state = past
    close(state["past"], {c: trees["model"] for c, trees in best.items()}, rtol=0, atol=0)
    assert method.after_evaluation(state, variables, False) is state
    again = method.after_evaluation(state, variables, True)
    close(again["past"], {c: trees["model"] for c, trees in variables.items()}, rtol=0, atol=0)
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_who_needs_evaluations():
    assert methods.create("teaching_yourself", Normed()).needs_validation
    assert methods.create("skd_srl", Normed(), past_teacher=0.1).needs_validation
    assert not methods.create("skd_srl", Normed()).needs_validation
    assert not methods.create("supervised", Normed()).needs_validation


def test_wrong_hyper_parameters():
    with pytest.raises(UserError, match="method.temperature must be positive"):
        methods.create("teaching_yourself", Normed(), temperature=0)
    with pytest.raises(UserError, match="method.past_teacher must not be negative"):
        methods.create("skd_srl", Normed(), past_teacher=-1)
