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
from tests.methods.objectives import close, largest, passes

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


@pytest.fixture(scope="module")
def run(method, variables):
    """State -> (metrics, new state, gradients in the parameters, gradients in the past), compiled once."""

    @jax.jit
    def everything(state):
        def loss(params, past):
            found, given = {**variables, "params": params}, {**state, "past": past}
            key = jax.random.key(1)
            value, (metrics, _, new) = method.loss(found, BATCH, given, key, np.float32(0), None)
            return value, (metrics, new)

        gradients, (metrics, new) = jax.grad(loss, (0, 1), has_aux=True)(
            variables["params"], state["past"]
        )
        return metrics, new, *gradients

    return everything


def test_without_a_past_there_is_no_teacher(name, method, variables, run):
    metrics, state, _, _ = run(method.init_state(variables))
    assert metrics[TERM[name]] == 0.0 and state["ready"] == 0.0
    assert metrics["loss"] > 0


def test_the_past_teaches_by_its_running_statistics(name, method, variables, past, run):
    best, state = past
    metrics, after, _, _ = run(state)
    q, _, _ = passes(variables, BATCH["clips"], together=False)
    own = {collection: trees["model"] for collection, trees in best.items()}
    taught = [Normed().apply(own, BATCH["clips"][:, view]).logits for view in (0, 1)]
    want = np.mean([9 * kl(q[:, v], taught[v], 3.0).mean() for v in (0, 1)])
    np.testing.assert_allclose(metrics[TERM[name]], want, rtol=1e-3)
    before = run(method.init_state(variables))[0]["loss"]
    np.testing.assert_allclose(metrics["loss"], before + 0.5 * want, rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_term_trains_the_classifier_alone(method, variables, past, run):
    _, _, with_it, to_past = run(past[1])
    _, _, without, _ = run(method.init_state(variables))
    difference = jax.tree.map(np.subtract, with_it, without)
    assert all(largest(difference["model"][layer]) > 1e-4 for layer in ("stem", "fc"))
    for network in difference.keys() - {"model"}:
        assert largest(difference[network]) < 1e-6
    assert largest(to_past) == 0.0


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
