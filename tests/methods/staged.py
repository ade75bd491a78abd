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
    """Three 1x1x1 layers with BatchNorm and ReLU; the second halves H and W, the third T, H and W."""

    num_classes: int = 4
    channels: tuple[int, ...] = (3, 4, 5)
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, clips, train: bool = False):
        x, maps = clips, []
        for i, channels in enumerate(self.channels):
            x = x[:, :: 2 if i == 2 else 1, :: 2 if i else 1, :: 2 if i else 1]
            x = nn.Dense(channels, dtype=self.dtype, name=f"layer{i + 1}")(x)
            norm = nn.BatchNorm(
                not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i + 1}"
            )
            x = nn.relu(norm(x))
            maps.append(x)
        embedding = jnp.mean(x, axis=(1, 2, 3), dtype=jnp.float32)
        return Outputs(nn.Dense(self.num_classes, name="fc")(embedding), embedding, tuple(maps))


def init(method, batch=BATCH, seed=1):
    """Random variables."""
    return variables_of(method, batch["clips"][:1, 0], seed)


def run(method, variables, batch=BATCH, key=2):
    """What `loss` returns."""
    return jax.jit(
        lambda v: method.loss(v, batch, {}, jax.random.key(key), jnp.zeros(()), None)
    )(variables)


def one_pass(module, variables, name, inputs):
    """Outputs of one network in training mode; its statistics in `variables` move."""
    trees = {collection: trees[name] for collection, trees in variables.items()}
    outputs, updated = jax.jit(
        lambda trees, x: module.apply(trees, x, train=True, mutable=["batch_stats"])
    )(trees, inputs)
    variables["batch_stats"] = variables["batch_stats"] | {name: updated.get("batch_stats", {})}
    return outputs


def term_gradients(method, variables, batch=BATCH, key=2):
    """Largest gradient by term and network: {term: {"model/fc": ..., "model/layer1": ...}}.

    Networks beside the classifier count as one.
    """

    def terms(params):
        v = {**variables, "params": params}
        loss, (metrics, _, _) = method.loss(
            v, batch, {}, jax.random.key(key), jnp.zeros(()), None
        )
        return {k: x for k, x in metrics.items() if k.startswith("loss_")} | {"loss": loss}

    found = {}
    for term, tree in jax.jit(jax.jacrev(terms))(variables["params"]).items():
        found[term] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = path[0].key
            name = f"{name}/{path[1].key}" if name == "model" else name
            assert np.isfinite(leaf).all(), (term, path)
            found[term][name] = max(found[term].get(name, 0.0), float(abs(leaf).max()))
    return found


def moved(found, term):
    """The parts that a term moves; those without any gradient are exactly zero."""
    return {name for name, size in found[term].items() if size > 0}


def cross_entropy(logits, targets):
    """Mean, NumPy float64; targets are class ids or probabilities."""
    targets = np.asarray(targets)
    if targets.ndim == 1:
        targets = np.eye(np.shape(logits)[-1])[targets]
    return -(targets * log_softmax(logits)).sum(-1).mean()


def replicas_agree(method, batch=BATCH):
    """Two replicas of half the batch have the metrics and the mean gradient of one of it all."""
    variables = init(method, batch)

    def loss(params, part, axis):
        value, (metrics, stats, _) = method.loss(
            {**variables, "params": params}, part, {}, jax.random.key(2), jnp.zeros(()), axis
        )
        return value, (metrics, stats)

    def gradient(part, axis=None):
        return jax.grad(loss, has_aux=True)(variables["params"], part, axis)

    whole = jax.jit(gradient)(batch)
    halves = jax.tree.map(lambda x: x.reshape(2, len(x) // 2, *x.shape[1:]), batch)
    apart = jax.jit(jax.vmap(lambda part: gradient(part, "batch"), axis_name="batch"))(halves)
    # Under BatchNorm over an axis a replica's gradient holds its share of the others' losses only
    # after the mean.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.mean(0), b, rtol=5e-3, atol=1e-5), apart, whole
    )
