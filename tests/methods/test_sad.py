"""SAD against NumPy, and its stop."""

import numpy as np
import pytest

from skd_jax import losses, methods
from skd_jax.errors import UserError
from tests.fakes import (
    Linear,
    quick_compilation,  # noqa: F401  a fixture
)
from tests.methods.staged import (
    BATCH,
    Staged,
    cross_entropy,
    init,
    moved,
    one_pass,
    run,
    term_gradients,
)


def create(model=None, **options):
    return methods.create("sad", model or Staged(), **options)


def test_loss_follows_the_equations():
    method = create(lambda_sad=0.3)
    variables = init(method)
    loss, (metrics, _, state) = run(method, variables)
    model = one_pass(Staged(), dict(variables), "model", BATCH["clips"][:, 0])
    pairs = [losses.layer_attention(*model.maps[i : i + 2]).mean() for i in range(2)]
    want = {
        "loss_ce": cross_entropy(model.logits, BATCH["label"]),
        "loss_sad": (2 * 2 * 2) ** 2 * sum(np.asarray(x, np.float64) for x in pairs),
    }
    want["loss"] = want["loss_ce"] + 0.3 * want["loss_sad"]
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert loss == metrics["loss"] and state == {}


def test_the_deeper_map_is_a_target():
    method = create()
    variables = init(method)
    assert variables["params"].keys() == {"model"}
    found = term_gradients(method, variables)
    inner = {"model/layer1", "model/bn1", "model/layer2", "model/bn2"}
    assert moved(found, "loss_sad") == inner
    assert moved(found, "loss_ce") == inner | {"model/layer3", "model/bn3", "model/fc"}


def test_a_network_of_one_stage_is_refused():
    method = create(Linear())
    with pytest.raises(UserError, match="the maps of two stages or more, this one has 1"):
        run(method, init(method))
