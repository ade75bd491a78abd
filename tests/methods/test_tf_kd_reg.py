"""Tf-KD by regularisation against NumPy."""

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

BATCH = float_batch()
OPTIONS = {"views": 2, "alpha": 0.4, "temperature": 3.0, "correct": 0.9, "multiplier": 2.0}
VIRTUAL = softmax(np.where(np.eye(4)[BATCH["label"]], 0.9, 0.1 / 3) / 3.0)


def test_loss_is_put_together_from_label_and_virtual_teacher():
    method = methods.create("tf_kd_reg", Normed(), **OPTIONS)
    variables = variables_of(method, BATCH["clips"][:1, 0])
    q, _, _ = passes(variables, BATCH["clips"], together=False)
    log = log_softmax(q)
    ce = -np.take_along_axis(log, BATCH["label"][:, None, None], 2).mean()
    kd = (VIRTUAL[:, None] * (np.log(VIRTUAL)[:, None] - log)).sum(-1).mean()
    loss, metrics, _, state = evaluate(method, variables, BATCH)
    np.testing.assert_allclose(loss, 0.6 * ce + 0.4 * 2.0 * kd, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_ce"], ce, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_kd"], kd, rtol=1e-3)
    assert state == {} and {"top1", "view_agreement"} <= metrics.keys()


def test_gradient_of_both_terms():
    """Softmax minus target, as if the target were the weighted mean of label and virtual teacher."""
    method = methods.create("tf_kd_reg", Linear(), **OPTIONS)
    variables = variables_of(method, BATCH["clips"][:1, 0])
    x = BATCH["clips"].astype(np.float64).reshape(6, 2, -1)
    p = softmax(x @ np.asarray(variables["params"]["model"]["fc"]["kernel"], np.float64))
    label = np.eye(4)[BATCH["label"]][:, None]
    to_logits = (0.6 * (p - label) + 0.8 * (p - VIRTUAL[:, None])) / 12
    got = gradient(method, variables, BATCH)["model"]["fc"]["kernel"]
    np.testing.assert_allclose(got, np.einsum("bvd,bvk->dk", x, to_logits), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"alpha": 1.5}, "method.alpha must be in"),
        ({"temperature": 0.0}, "method.temperature must be positive"),
        ({"correct": 1.0}, "method.correct must be in"),
        ({"views": 0}, "method.views must be at least 1"),
    ],
)
def test_wrong_hyper_parameters(options, message):
    with pytest.raises(UserError, match=message):
        methods.create("tf_kd_reg", Normed(), **options)
