"""Classifiers and batches small enough to check by hand, and NumPy's view of the losses."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax.models import Outputs


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles in half the time, for modules whose programs run once; imported where it is wanted."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Linear(nn.Module):
    """No BatchNorm: embedding = the clip's pixels, logits = embedding @ kernel."""

    num_classes: int = 4
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, clips, train: bool = False):
        embedding = clips.reshape(clips.shape[0], -1)
        logits = nn.Dense(self.num_classes, use_bias=False, name="fc")(embedding)
        return Outputs(logits, embedding, (clips,))


class Normed(nn.Module):
    """A linear layer, BatchNorm, tanh, dropout, a linear layer."""

    num_classes: int = 4
    width: int = 6
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, clips, train: bool = False):
        x = nn.Dense(self.width, name="stem")(clips.reshape(clips.shape[0], -1))
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, name="bn")(x)
        embedding = jnp.tanh(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(embedding)
        return Outputs(nn.Dense(self.num_classes, name="fc")(x), embedding, (clips,))


def float_batch(seed=0, videos=6, views=2, shape=(2, 2, 2, 3), classes=4):
    """What `Method.loss` gets."""
    rng = np.random.default_rng(seed)
    return {
        "clips": rng.normal(size=(videos, views, *shape)).astype(np.float32),
        "label": rng.integers(classes, size=videos).astype(np.int32),
    }


def pixel_batch(seed=0, videos=8, views=2, frames=2, canvas=6, classes=4):
    """What `train_step` and, with its "mask", `eval_step` get: one process's uint8 batch."""
    rng = np.random.default_rng(seed)
    return {
        "clips": rng.integers(256, size=(videos, views, frames, canvas, canvas, 3)).astype(
            np.uint8
        ),
        "size": rng.integers(3, canvas + 1, size=(videos, views, 2)).astype(np.int32),
        "flip": rng.random((videos, views)) < 0.5,
        "label": rng.integers(classes, size=videos).astype(np.int32),
        "index": rng.permutation(videos).astype(np.int32),
        "key": rng.integers(2**32, size=(videos, 2)).astype(np.uint32),
        "mask": np.ones(videos, bool),
    }


def variables_of(method, clips, seed=1):
    """Variables as `method.init` shapes them, every parameter random, running statistics 0 and 1."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), clips)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[0].key == "params":
            return (0.5 * rng.normal(size=leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, path[-1].key == "var", np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def log_softmax(x):
    """NumPy, float64."""
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x):
    """NumPy, float64."""
    return np.exp(log_softmax(x))


def kl(student, teacher, temperature):
    """KL(softmax(teacher / T) || softmax(student / T)) per example, NumPy, float64."""
    s = log_softmax(np.asarray(student, np.float64) / temperature)
    t = log_softmax(np.asarray(teacher, np.float64) / temperature)
    return (np.exp(t) * (t - s)).sum(-1)


def cosine(a, b):
    """Per example, NumPy, float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
