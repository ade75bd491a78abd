"""Plain supervision against NumPy."""

import jax
import jax.numpy as jnp
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

SPREAD = {"view_agreement", "view_cosine", "embedding_std", "embedding_rank"}


@pytest.mark.parametrize("views,together", [(1, False), (2, True), (3, False)])
def test_loss_is_the_mean_cross_entropy_over_views(views, together):
    batch = float_batch(views=views)
    method = methods.create(
        "supervised", Normed(), views=views, label_smoothing=0.1, views_together=together
    )
    assert method.num_views == views
    variables = variables_of(method, batch["clips"][:1, 0])
    assert variables["params"].keys() == {"model"}
    loss, (metrics, stats, state) = jax.jit(
        lambda v: method.loss(v, batch, {}, jax.random.key(1), jnp.zeros(()), None)
    )(variables)
    own = {collection: trees["model"] for collection, trees in variables.items()}
    passes = [batch["clips"].swapaxes(0, 1).reshape(-1, 2, 2, 2, 3)]
    if not together:
        passes = list(batch["clips"].swapaxes(0, 1))
    logits = []
    for clips in passes:
        outputs, updated = Normed().apply(own, clips, train=True, mutable=["batch_stats"])
        own |= updated
        logits.append(np.asarray(outputs.logits))
    logits = np.concatenate(logits)
    labels = np.tile(batch["label"], views)
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    want = -(target * log_softmax(logits)).sum(-1).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-4)
    np.testing.assert_allclose(metrics["top1"], (logits.argmax(-1) == labels).mean(), rtol=1e-6)
    assert (
        (metrics.keys() == {"loss", "top1"} | SPREAD) if views > 1 else not SPREAD & metrics.keys()
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        stats,
        {"model": own["batch_stats"]},
    )
    assert state == {}


def test_at_least_one_view():
    with pytest.raises(UserError, match="method.views must be at least 1, got 0"):
        methods.create("supervised", Normed(), views=0)
