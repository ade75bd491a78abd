"""MixSKD against NumPy: its loss from the networks' outputs, and its stops."""

import jax
import numpy as np
import pytest

from skd_jax import methods, mixing
from skd_jax.errors import UserError
from skd_jax.models.branches import Branches
from tests.fakes import (
    Linear,
    float_batch,
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
    run,
    term_gradients,
)

STAGES = {"model/layer1", "model/layer2", "model/layer3", "model/bn1", "model/bn2", "model/bn3"}


def create(model=None, **options):
    return methods.create("mixskd", model or Staged(), **{"block": "separable"} | options)


def linear(x, params):
    y = np.asarray(x, np.float64) @ np.asarray(params["kernel"], np.float64)
    return y + params["bias"] if "bias" in params else y


def bce(logits, target):
    """Mean over examples and outputs."""
    return np.mean(np.logaddexp(0, logits) - target * logits)


def expected(variables, clips, label, t=3.0, alpha=0.4):
    """Every term, from the definition, with the ensemble on whole maps as the reference has it."""
    share, partner = (
        np.asarray(x)
        for x in mixing.draw(jax.random.split(jax.random.key(2))[0], len(clips), alpha)
    )

    def mix(x):
        x = np.asarray(x, np.float64)
        m = share.reshape(-1, *[1] * (x.ndim - 1)).astype(np.float64)
        return m * x + (1 - m) * x[partner]

    moving, params, count = dict(variables), variables["params"], len(clips)
    both = np.concatenate([clips, mix(clips)]).astype(np.float32)
    model = one_pass(Staged(), moving, "model", both)
    branches = one_pass(Branches(4, block="separable"), moving, "branches", model.maps)
    outputs = [*branches, model]
    logits = [(mix(x.logits[:count]), np.asarray(x.logits[count:])) for x in outputs]
    maps = [(mix(x.maps[-1][:count]), np.asarray(x.maps[-1][count:])) for x in outputs]
    labels = mix(np.eye(4)[label])

    def ensemble(features):
        joined = linear(np.concatenate(features, -1), params["ensemble"]["join"])
        return linear(joined.mean((1, 2, 3)), params["ensemble"]["fc"])

    of_mean, of_mixed = (ensemble([pair[side] for pair in maps]) for side in (0, 1))

    def distil(student, teacher):
        return t**2 * kl(student, teacher, t).mean()

    adversarial = 0.0
    for i, pair in enumerate(maps, start=1):
        of = params["discriminators"]
        told = [
            linear(
                np.maximum(linear(x.mean((1, 2, 3)), of[f"stage{i}_fc1"]), 0), of[f"stage{i}_fc2"]
            )
            for x in pair
        ]
        targets = np.array([[1, 0]] * count + [[0, 1]] * count)
        adversarial += bce(np.concatenate(told), targets)
    terms = {
        "loss_ce": sum(cross_entropy(x.logits[:count], label) for x in outputs),
        "loss_ce_mixed": sum(cross_entropy(mixed, labels) for _, mixed in logits)
        + cross_entropy(of_mean, labels)
        + cross_entropy(of_mixed, labels),
        "loss_kd": sum(distil(a, b) + distil(b, a) for a, b in logits[:-1])
        + distil(logits[-1][0], of_mixed)
        + distil(logits[-1][1], of_mean),
        "loss_feature": sum(((a - b) ** 2).mean() for a, b in maps),
        "loss_adversarial": adversarial,
        "top1": np.mean(model.logits[:count].argmax(-1) == label),
    }
    return terms, moving["batch_stats"]


def test_loss_and_statistics_follow_the_equations():
    method = create(lambda_kd=0.5, lambda_feature=2.0, lambda_adversarial=0.3)
    variables = init(method)
    loss, (metrics, stats, state) = run(method, variables)
    want, want_stats = expected(variables, BATCH["clips"][:, 0], BATCH["label"])
    want["loss"] = (
        want["loss_ce"]
        + want["loss_ce_mixed"]
        + 0.5 * want["loss_kd"]
        + 2 * want["loss_feature"]
        + 0.3 * want["loss_adversarial"]
    )
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert loss == metrics["loss"] and state == {}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        stats,
        want_stats | {"ensemble": {}, "discriminators": {}},
    )


def test_views_are_mixed_with_the_same_view_of_the_partner():
    two = float_batch(videos=3, views=2, shape=(2, 4, 4, 3))
    method = create(views=2, views_together=False)
    variables = init(method)
    metrics = run(method, variables, two)[1][0]
    first, stats = expected(variables, two["clips"][:, 0], two["label"])
    moving = {**variables, "batch_stats": stats | {"ensemble": {}, "discriminators": {}}}
    second, _ = expected(moving, two["clips"][:, 1], two["label"])
    for name, value in first.items():
        want = (value + second[name]) / 2
        np.testing.assert_allclose(metrics[name], want, rtol=1e-3, atol=1e-5, err_msg=name)
    assert "view_agreement" in metrics


def test_soft_labels_are_stopped_and_features_are_not():
    method = create()
    found = term_gradients(method, init(method))
    everything = STAGES | {"model/fc", "branches"}
    assert moved(found, "loss_ce") == everything
    assert moved(found, "loss_ce_mixed") == everything | {"ensemble"}
    assert moved(found, "loss_kd") == everything  # the ensemble teaches alone
    assert moved(found, "loss_feature") == STAGES | {"branches"}
    assert moved(found, "loss_adversarial") == STAGES | {"branches", "discriminators"}


@pytest.mark.parametrize(
    "options,message",
    [
        ({"temperature": 0}, "method.temperature must be positive"),
        ({"mixup_alpha": 0}, "method.mixup_alpha must be positive, got 0"),
        ({"block": "dense"}, "unknown method.block 'dense'"),
    ],
)
def test_wrong_hyper_parameters(options, message):
    with pytest.raises(UserError, match=message):
        create(Linear(), **options)
