"""Losses and targets that look at a batch as a whole: at its mean, or at who resembles whom.

With `axis_name` they see the batch of all replicas, and so do not depend on how it is divided; each
replica's gradient is then such that `parallel.mean_over_replicas` gives the whole batch's.
"""

import chex
import jax
import jax.numpy as jnp

from skd_jax.losses.targets import probability_distillation
from skd_jax.losses.vectors import normalise
from skd_jax.precision import EXACT


def maximum_mean_discrepancy(
    first: chex.Array, second: chex.Array, axis_name: str | None = None
) -> chex.Array:
    """Squared maximum mean discrepancy of two samples, with the linear kernel.

        |mean_b first_b - mean_b second_b|^2,   the squared distance of the mean vectors

    Gretton et al., JMLR 13, 2012; the biased estimate, whose kernel k(x, y) = <x, y> makes it the
    distance of the means. It compares vectors: taking the mean over the features too, as one
    public re-implementation of DDGSD does, leaves a single number of each sample.

    Args:
      first: (B, D) floats.
      second: (B, D) floats.
      axis_name: the replicas' axis: the means are those of all replicas' examples; None sees this
        batch alone.

    Returns:
      float32 scalar, 0 or more.

    Raises:
      ValueError: if the shapes differ.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"both samples must share one shape (B, D), got {first.shape} and {second.shape}"
        )
    difference = jnp.mean(first.astype(jnp.float32) - second.astype(jnp.float32), axis=0)
    if axis_name is not None:
        difference = jax.lax.pmean(difference, axis_name)
    return jnp.sum(difference * difference)


def ensemble_distillation(
    embedding: chex.Array,
    logits: chex.Array,
    temperature: float,
    omega: float,
    axis_name: str | None = None,
) -> chex.Array:
    """BAKE: T^2 KL(Q || softmax(logits / T)), Q the labels that the whole batch agrees on.

    Ge et al. 2021, see `batch_ensemble`, which makes Q. Q is a constant, the embeddings and logits
    behind it alike: the ensemble is the teacher, not to be lowered to the level of its members.

    Args:
      embedding: (B, D) floats.
      logits: (B, K) floats, of the same examples.
      temperature: T > 0.
      omega: share of the others in Q, in [0, 1).
      axis_name: the replicas' axis: Q is mixed from the examples of all replicas, and the result is
        the mean over this replica's; the mean over the replicas is that of their whole batch. None
        sees this batch alone.

    Returns:
      float32 scalar, in nats times T^2.

    Raises:
      ValueError: as `batch_ensemble`.
    """
    constant = jax.lax.stop_gradient((embedding, logits))
    targets = batch_ensemble(*constant, temperature, omega, axis_name)
    return probability_distillation(logits, targets, temperature, scale_by_t2=True).mean()


def batch_ensemble(
    embedding: chex.Array,
    logits: chex.Array,
    temperature: float,
    omega: float,
    axis_name: str | None = None,
) -> chex.Array:
    """Soft labels of each example, mixed with those that resemble it: targets, not yet a loss.

    Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification",
    2021 (BAKE), the closed form of infinitely many rounds of mixing Q <- w W Q + (1 - w) P:

        W = softmax over j != i of cos(e_i, e_j),   P = softmax(logits / T)
        Q = (1 - w) (I - w W)^-1 P

    `ensemble_distillation` is the loss made of them. The rows of Q sum to 1. I - w W is diagonally
    dominant, so that solving is safe for any w < 1.

    Args:
      embedding: (B, D) floats.
      logits: (B, K) floats.
      temperature: T > 0.
      omega: w in [0, 1), share of the others in each round.
      axis_name: the replicas' axis: the examples of all replicas are mixed, G of them; every replica
        gathers G x (D + K) numbers and solves the same G x G system. None sees this batch alone.

    Returns:
      (B, K) float32, this replica's rows of Q. No gradient is stopped here.

    Raises:
      ValueError: if the number of examples differs, or temperature or omega is out of range.
    """
    if embedding.ndim != 2 or logits.ndim != 2 or len(embedding) != len(logits):
        raise ValueError(
            "embedding and logits must have shapes (B, D) and (B, K), got "
            f"{embedding.shape} and {logits.shape}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0.0 <= omega < 1.0:
        raise ValueError(f"omega must be in [0, 1), got {omega}")
    batch = len(logits)
    directions = normalise(embedding)
    labels = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
    if axis_name is not None:
        directions, labels = jax.lax.all_gather((directions, labels), axis_name, tiled=True)
    itself = jnp.eye(len(labels), dtype=jnp.float32)
    cosines = jnp.matmul(directions, directions.T, precision=EXACT)
    # A large number and not infinity: an example that is alone in its batch is left with itself.
    weights = jax.nn.softmax(cosines - 1e9 * itself)
    mixed = jnp.linalg.solve(itself - omega * weights, (1.0 - omega) * labels)
    if axis_name is not None:
        start = jax.lax.axis_index(axis_name) * batch
        mixed = jax.lax.dynamic_slice_in_dim(mixed, start, batch)
    return mixed
