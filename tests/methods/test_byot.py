"""BYOT against NumPy: its loss from the networks' outputs, and its stops."""

import numpy as np
import pytest

from skd_jax import methods
from skd_jax.errors import UserError
from skd_jax.models.branches import Branches
from tests.fakes import (
    Linear,
    kl,
    quick_compilation,  # noqa: F401  a fixture
)
from tests.methods.staged import (
    BATCH,
    Staged,
    cross_entropy,
    init,
    moved,
    one_pass,
    replicas_agree,
    run,
    term_gradients,
)

STAGES = {"model/layer1", "model/layer2", "model/layer3", "model/bn1", "model/bn2", "model/bn3"}


def create(model=None, **options):
    return methods.create("byot", model or Staged(), **options)


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.4, "beta": 0.2, "temperature": 2.0, "block": "residual"}], ids=str
)
def test_loss_follows_the_equations(options):
    method = create(**options)
    variables = init(method)
    loss, (metrics, stats, state) = run(method, variables)
    moving, label = dict(variables), BATCH["label"]
    model = one_pass(Staged(), moving, "model", BATCH["clips"][:, 0])
    branches = one_pass(Branches(4, block=method.block), moving, "branches", model.maps)
    assert len(branches) == 2
    feature = np.asarray(model.maps[-1], np.float64).mean((1, 2, 3))
    hints = [np.asarray(b.embedding, np.float64) - feature for b in branches]  # both are ReLUs'
    t = method.temperature
    want = {
        "loss_ce": cross_entropy(model.logits, label),
        "loss_ce_branches": sum(cross_entropy(b.logits, label) for b in branches),
        "loss_kd": sum(t**2 * kl(b.logits, model.logits, t).mean() for b in branches),
        "loss_hint": sum((h**2).sum(-1).mean() for h in hints),
        "top1": np.mean(model.logits.argmax(-1) == label),
    }
    want["loss"] = (
        (1 - method.alpha) * (want["loss_ce"] + want["loss_ce_branches"])
        + method.alpha * want["loss_kd"]
        + method.beta * want["loss_hint"]
    )
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert loss == metrics["loss"] and state == {}
    for name in ("model", "branches"):
        np.testing.assert_allclose(
            np.concatenate([np.ravel(x) for x in _leaves(stats[name])]),
            np.concatenate([np.ravel(x) for x in _leaves(moving["batch_stats"][name])]),
            rtol=1e-4,
            atol=1e-6,
        )


def _leaves(tree):
    return [x for v in tree.values() for x in (_leaves(v) if hasattr(v, "values") else [v])]


def test_the_deepest_classifier_is_a_target_alone():
    method = create()
    found = term_gradients(method, init(method))
    inner = {name for name in STAGES if not name.endswith("3")}
    assert moved(found, "loss_ce") == STAGES | {"model/fc"}
    assert moved(found, "loss_ce_branches") == inner | {"branches"}
    assert moved(found, "loss_kd") == inner | {"branches"}
    assert moved(found, "loss_hint") == inner | {"branches"}


def test_replicas():
    replicas_agree(create(beta=0.1))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"temperature": -1}, "method.temperature must be positive"),
        ({"alpha": 1.5}, r"method.alpha must be in \[0, 1\], got 1.5"),
        ({"block": "dense"}, "unknown method.block 'dense'"),
    ],
)
def test_wrong_hyper_parameters(options, message):
    with pytest.raises(UserError, match=message):
        create(Linear(), **options)
