"""A classifier of three stages, small enough to check by hand, and what tests of its methods share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skd_jax.models import Outputs
from tests.fakes import float_batch, log_softmax, variables_of

BATCH = float_batch(videos=6, views=1, shape=(2, 4, 4, 3))


class Staged(nn.Module):
    """Three 1x1x1 layers with BatchNorm and ReLU (if `rectified`); the second halves H and W, the third T too."""

    num_classes: int = 4
    channels: tuple[int, ...] = (3, 4, 5)
    dtype: Any = jnp.float32
    axis_name: str | None = None
    rectified: bool = True

    @nn.compact
    def __call__(self, clips, train: bool = False):
        x, maps = clips, []
        for i, channels in enumerate(self.channels):
            x = x[:, :: 2 if i == 2 else 1, :: 2 if i else 1, :: 2 if i else 1]
            x = nn.Dense(channels, dtype=self.dtype, name=f"layer{i + 1}")(x)
            norm = nn.BatchNorm(
                not train,
                momentum=0.9,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"bn{i + 1}",
            )
            x = norm(x)
            x = nn.relu(x) if self.rectified else x
            maps.append(x)
        embedding = jnp.mean(x, axis=(1, 2, 3), dtype=jnp.float32)
        return Outputs(nn.Dense(self.num_classes, name="fc")(embedding), embedding, tuple(maps))


def init(method, batch=BATCH, seed=1):
    """Random variables; fusion weights above zero, where they are on."""
    variables = variables_of(method, batch["clips"][:1, 0], seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: abs(x) + 0.1 if path[-1].key.endswith("_fusion") else x, variables
    )


def run(method, variables, batch=BATCH, key=2):
    """What `loss` returns."""
    return jax.jit(lambda v: method.loss(v, batch, {}, jax.random.key(key), jnp.zeros(()), None))(
        variables
    )


def one_pass(module, variables, name, inputs):
    """Outputs of one network in training mode; its statistics in `variables` move."""
    trees = {collection: trees[name] for collection, trees in variables.items()}
    outputs, updated = jax.jit(
        lambda trees, x: module.apply(trees, x, train=True, mutable=["batch_stats"])
    )(trees, inputs)
    variables["batch_stats"] = variables["batch_stats"] | {name: updated.get("batch_stats", {})}
    return outputs


def term_gradients(method, variables, batch=BATCH, key=2):
    """Gradient trees by term: {"loss_ce": ..., "loss": ...}."""

    def weighted(params, weights):
        v = {**variables, "params": params}
        _, (metrics, _, _) = method.loss(v, batch, {}, jax.random.key(key), jnp.zeros(()), None)
        terms = {k: x for k, x in metrics.items() if k.startswith("loss")}
        return sum(weights.get(k, 0.0) * x for k, x in terms.items()), terms

    _, terms = jax.eval_shape(weighted, variables["params"], {})
    # One program for all terms: what is multiplied by zero leaves zeros.
    gradient = jax.jit(jax.grad(lambda params, weights: weighted(params, weights)[0]))
    found = {}
    for term in terms:
        weights = {k: jnp.float32(k == term) for k in terms}
        found[term] = gradient(variables["params"], weights)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found[term])), term
    return found


def moved(found, term):
    """The parts with a gradient: layers of the model ("model/fc"), other networks as one."""
    return {
        f"model/{path[1].key}" if path[0].key == "model" else path[0].key
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[term])
        if np.any(leaf)
    }


def cross_entropy(logits, targets):
    """Mean, NumPy float64; targets are class ids or probabilities."""
    targets = np.asarray(targets)
    if targets.ndim == 1:
        targets = np.eye(np.shape(logits)[-1])[targets]
    return -(targets * log_softmax(logits)).sum(-1).mean()


def replicas_agree(method, batch=BATCH):
    """Two replicas of half the batch have the metrics and statistics of one of it all."""
    variables = init(method, batch)

    def outcome(part, axis=None):
        _, (metrics, stats, _) = method.loss(
            variables, part, {}, jax.random.key(2), jnp.zeros(()), axis
        )
        return metrics, stats

    whole = jax.jit(outcome)(batch)
    halves = jax.tree.map(lambda x: x.reshape(2, len(x) // 2, *x.shape[1:]), batch)
    apart = jax.jit(jax.vmap(lambda part: outcome(part, "batch"), axis_name="batch"))(halves)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.mean(0), b, rtol=1e-3, atol=1e-5), apart, whole
    )
