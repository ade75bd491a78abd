"""What all methods on stage maps have in common, on the repository's own models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import methods, models, step
from skd_jax.augment import AugmentSettings
from skd_jax.optim import OptimSettings, optimiser
from tests.fakes import (
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
)
from tests.methods.staged import BATCH, Staged, init

METHODS = {
    "byot": {},
    "dks": {},
    "frskd": {},
    "frskd+sla": {"sla": True},
    "frskd+mixup": {"mix": "mixup"},
    "frskd+cutmix": {"mix": "cutmix"},
    "mixskd": {},
    "sad": {},
}


def create(name, model):
    return methods.create(name.partition("+")[0], model, **METHODS[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "model,dtype",
    [
        ("r3d_10", "float32"),
        pytest.param("x3d_xs", "bfloat16", marks=pytest.mark.slow),
        pytest.param("slowfast_r50", "float32", marks=pytest.mark.slow),
    ],
)
def test_step_keeps_the_states_structure(name, model, dtype):
    """Micro-batches, an average of the weights, bfloat16; models whose maps differ in kind."""
    network = models.create(model, 4, width=0.125, dtype=dtype)
    method = create(name, network)
    tx = optimiser(OptimSettings(), 10)
    settings = step.StepSettings(total_steps=10, accumulate=2, ema_decay=0.9)
    batch = pixel_batch(videos=4, views=1, frames=8, canvas=32)
    del batch["mask"]

    def two(batch):
        before = step.create_state(method, tx, jax.random.key(0), (8, 32, 32, 3), settings)
        return before, step.train_step(
            before,
            batch,
            method=method,
            tx=tx,
            augmentation=AugmentSettings(crop=32),
            settings=settings,
        )

    before, (after, metrics) = jax.eval_shape(two, batch)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    assert {x.shape for x in metrics.values()} == {()}
    assert {"loss", "loss_ce", "top1", "grad_norm"} <= metrics.keys()
    # What is deployed is what supervision trains.
    supervised = methods.create("supervised", network)
    clip = jnp.zeros((1, 8, 32, 32, 3))
    want = jax.eval_shape(supervised.init, jax.random.key(0), clip)
    assert before.params["model"] == want["params"]["model"]
    assert before.batch_stats["model"] == want["batch_stats"]["model"]


def test_initial_variables_depend_on_the_key_alone():
    method = create("mixskd", Staged())
    start = jax.jit(method.init)
    first, again, other = (start(jax.random.key(k), BATCH["clips"][:1, 0]) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for path in (("branches", "stage1", "block1", "conv1"), ("ensemble", "join"), ("model", "fc")):
        trees = [first["params"], other["params"]]
        for key in path:
            trees = [tree[key] for tree in trees]
        assert (trees[0]["kernel"] != trees[1]["kernel"]).all(), path


@pytest.mark.parametrize(
    "name,options",
    [
        ("frskd", {"width": 1, "depth": 1}),
        ("mixskd", {"block": "separable"}),
    ],
)
def test_a_step_in_bfloat16_is_finite(name, options):
    method = methods.create(name, Staged(channels=(3, 4), dtype=jnp.bfloat16), **options)
    variables = init(method)

    def loss(params):
        return method.loss(
            {**variables, "params": params}, BATCH, {}, jax.random.key(1), jnp.zeros(()), None
        )

    (value, (metrics, stats, _)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    assert value.dtype == jnp.float32
    for leaf in jax.tree.leaves([value, metrics, stats, gradients]):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
