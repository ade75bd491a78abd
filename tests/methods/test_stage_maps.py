"""What all methods on stage maps have in common, on the repository's own models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import methods, models, step
from skd_jax.augment import AugmentSettings
from skd_jax.optim import OptimSettings, optimiser
from tests.fakes import pixel_batch

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
    "model,dtype", [("r3d_10", "float32"), ("x3d_xs", "bfloat16"), ("slowfast_r50", "float32")]
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
    method = create("mixskd", models.create("r3d_10", 3, width=0.0625))
    start = jax.jit(method.init)
    clips = jnp.zeros((1, 4, 16, 16, 3))
    first, again, other = (start(jax.random.key(k), clips) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for path in (("branches", "stage1", "block1", "conv1"), ("ensemble", "join"), ("model", "fc")):
        trees = [first["params"], other["params"]]
        for key in path:
            trees = [tree[key] for tree in trees]
        assert (trees[0]["kernel"] != trees[1]["kernel"]).all(), path


@pytest.mark.parametrize("name", ["frskd+sla", "mixskd"])
def test_a_step_in_bfloat16_is_finite(name):
    network = models.create("r3d_10", 4, width=0.0625, dtype=jnp.bfloat16)
    method = create(name, network)
    rng = np.random.default_rng(0)
    batch = {
        "clips": rng.normal(size=(4, 1, 4, 16, 16, 3)).astype(np.float32),
        "label": np.arange(4, dtype=np.int32),
    }
    variables = jax.jit(method.init)(jax.random.key(0), batch["clips"][:1, 0])

    def loss(params):
        return method.loss(
            {**variables, "params": params}, batch, {}, jax.random.key(1), jnp.zeros(()), None
        )

    step_fn = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    (value, (metrics, stats, _)), gradients = step_fn(variables["params"])
    assert value.dtype == jnp.float32
    for leaf in jax.tree.leaves([value, metrics, stats, gradients]):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
