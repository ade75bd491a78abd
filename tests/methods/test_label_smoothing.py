"""Label smoothing is supervision with another default."""

import numpy as np
import pytest

from skd_jax import methods
from skd_jax.errors import UserError
from tests.fakes import (
    Normed,
    float_batch,
    log_softmax,
    quick_compilation,  # noqa: F401  a fixture
    variables_of,
)
from tests.methods.objectives import evaluate, passes


def test_loss_against_smoothed_labels():
    method = methods.create("label_smoothing", Normed())
    batch = float_batch(views=1)
    variables = variables_of(method, batch["clips"][:1, 0])
    logits, _, _ = passes(variables, batch["clips"], together=False)
    target = 0.9 * np.eye(4)[batch["label"]] + 0.1 / 4
    loss, metrics, _, state = evaluate(method, variables, batch)
    np.testing.assert_allclose(
        loss, -(target * log_softmax(logits[:, 0])).sum(-1).mean(), rtol=1e-4
    )
    assert metrics.keys() == {"loss", "top1"} and state == {}


def test_defaults():
    assert methods.defaults("label_smoothing") == methods.defaults("supervised") | {
        "label_smoothing": 0.1
    }
    with pytest.raises(UserError, match="method.label_smoothing must be in"):
        methods.create("label_smoothing", Normed(), label_smoothing=1.0)
