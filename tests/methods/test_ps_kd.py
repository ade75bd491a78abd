"""PS-KD against NumPy: what it remembers, of whom, and how much of it counts."""

import numpy as np
import pytest

from skd_jax import methods
from skd_jax.errors import UserError
from tests.fakes import (
    Linear,
    Normed,
    float_batch,
    log_softmax,
    quick_compilation,  # noqa: F401  a fixture
    softmax,
    variables_of,
)
from tests.methods.objectives import evaluate, gradient, passes

INDEX = np.array([3, 9, 0, 7, 5, 1], np.int32)


def start(model=None, **options):
    method = methods.create("ps_kd", model or Normed(), num_videos=10, **options)
    batch = float_batch(views=method.num_views) | {"index": INDEX}
    return method, batch, variables_of(method, batch["clips"][:1, 0])


@pytest.mark.parametrize("views", [1, 2])
def test_an_epoch_later_the_target_holds_the_prediction(views):
    method, batch, variables = start(views=views, alpha=0.8)
    q, _, _ = passes(variables, batch["clips"], together=False)
    label = np.eye(4)[batch["label"]]
    loss, metrics, _, state = evaluate(method, variables, batch, progress=0.1)
    want = -(label[:, None] * log_softmax(q)).sum(-1).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    assert {"loss", "top1"} <= metrics.keys()

    predicted = softmax(q).mean(1)
    memory = np.zeros((10, 4))
    memory[INDEX] = predicted
    np.testing.assert_allclose(state["predictions"].values, memory, rtol=1e-4, atol=1e-6)

    # Other clips of the same videos but one, which is new.
    second = float_batch(seed=5, views=views)["clips"]
    changed = batch | {"clips": second, "index": np.array([3, 9, 0, 7, 5, 2], np.int32)}
    q, _, _ = passes(variables, second, together=False)
    target = 0.6 * label + 0.4 * predicted
    target[5] = label[5]
    loss, _, _, state = evaluate(method, variables, changed, state, progress=0.5)
    np.testing.assert_allclose(loss, -(target[:, None] * log_softmax(q)).sum(-1).mean(), rtol=1e-4)
    memory[changed["index"]] = softmax(q).mean(1)
    np.testing.assert_allclose(state["predictions"].values, memory, rtol=1e-4, atol=1e-6)


def test_gradient_against_the_softened_target():
    method, batch, variables = start(Linear())
    x = batch["clips"].astype(np.float64).reshape(6, -1)
    p = softmax(x @ np.asarray(variables["params"]["model"]["fc"]["kernel"], np.float64))
    state = evaluate(method, variables, batch)[3]
    remembered = np.asarray(state["predictions"].values)[INDEX]
    np.testing.assert_allclose(remembered, p, rtol=1e-4, atol=1e-6)
    target = 0.2 * np.eye(4)[batch["label"]] + 0.8 * remembered
    got = gradient(method, variables, batch, state, progress=1.0)["model"]["fc"]["kernel"]
    np.testing.assert_allclose(got, x.T @ (p - target) / 6, rtol=1e-3, atol=1e-5)


def test_the_number_of_videos_is_no_hyper_parameter_and_must_be_given():
    assert "num_videos" not in methods.defaults("ps_kd")
    method = methods.create("ps_kd", Normed())
    with pytest.raises(UserError, match="give num_videos"):
        method.init_state({})


def test_wrong_hyper_parameters():
    with pytest.raises(UserError, match="method.alpha must be in"):
        methods.create("ps_kd", Normed(), alpha=-0.1)
