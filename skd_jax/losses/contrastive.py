"""Contrastive losses against a memory of the training videos."""

import chex
import jax
import jax.numpy as jnp

from skd_jax.precision import EXACT

# As the authors add to the denominators (HobbitLong/RepDistiller).
NCE_EPSILON = 1e-7


def contrastive_representation(
    anchors: chex.Array,
    positives: chex.Array,
    negatives: chex.Array,
    num_noise: int,
    temperature: float,
    scale: chex.Array,
    counted: chex.Array | None = None,
) -> chex.Array:
    """CRD, one of its two directions: one network's embeddings against what is kept of the other's.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020:
    `noise_contrastive` of the scores exp(<u, v> / T) / Z, the mean over the anchors. It sees this
    replica's batch: an anchor is compared with its own positive and the negatives that are given,
    rows of a memory, never with another anchor. The mean over the replicas is the loss of
    their whole batch, each replica with its negatives. No gradient is stopped here: a memory has
    none.

    Args:
      anchors: (B, D) floats, of length 1.
      positives: (B, D) floats, of length 1: the same videos in the memory of the other network.
      negatives: (M, D) floats, of length 1: drawn from that memory, the same ones for all anchors.
      num_noise: N, how many videos the negatives are drawn from.
      temperature: T > 0.
      scale: Z > 0, a constant; see `contrastive_scale`.
      counted: (B, M) bool, negatives that count for an anchor; None counts all.

    Returns:
      float32 scalar, in nats.

    Raises:
      ValueError: if the shapes do not fit.
    """
    scores = _scores(anchors, positives, negatives, temperature)
    return noise_contrastive(scores / scale, num_noise, counted).mean()


def contrastive_scale(
    anchors: chex.Array,
    positives: chex.Array,
    negatives: chex.Array,
    num_noise: int,
    temperature: float,
    axis_name: str | None = None,
) -> chex.Array:
    """CRD's Z: N times the mean of exp(<u, v> / T) in the first batch, a constant.

    Args:
      anchors, positives, negatives, num_noise, temperature: as `contrastive_representation`.
      axis_name: the replicas' axis: the mean over the pairs of all replicas; None sees this batch
        alone.

    Returns:
      float32 scalar above 0.
    """
    scale = _scores(anchors, positives, negatives, temperature).mean() * num_noise
    if axis_name is not None:
        scale = jax.lax.pmean(scale, axis_name)
    return jax.lax.stop_gradient(scale)


def noise_contrastive(
    scores: chex.Array, num_noise: int, counted: chex.Array | None = None
) -> chex.Array:
    """CRD's noise-contrastive estimate: tell the positive from M negatives drawn from all videos.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, eq. 18; with
    h(s) = s / (s + M / N) it is -log h(s_0) - sum_{m >= 1} log(1 - h(s_m)). An example is judged by
    its own row alone, whatever the batch or the replicas.

    Args:
      scores: (B, 1 + M) above 0, exp(<u, v> / T) / Z; the first is the positive's.
      num_noise: N, how many videos the negatives are drawn from.
      counted: (B, M) bool, negatives that count; None counts all.

    Returns:
      (B,) float32.
    """
    scores = scores.astype(jnp.float32)
    noise = (scores.shape[1] - 1) / num_noise
    total = scores + noise + NCE_EPSILON
    positive = jnp.log(scores[:, 0] / total[:, 0])
    negatives = jnp.log(noise / total[:, 1:])
    return -positive - jnp.sum(negatives, axis=1, where=counted)


def _scores(anchors, positives, negatives, temperature) -> chex.Array:
    """exp(<u, v> / T), the positive's first: (B, 1 + M) float32."""
    if anchors.ndim != 2 or anchors.shape != positives.shape:
        raise ValueError(
            "anchors and positives must share one shape (B, D), got "
            f"{anchors.shape} and {positives.shape}"
        )
    if negatives.ndim != 2 or negatives.shape[1] != anchors.shape[1]:
        raise ValueError(f"negatives (M, {anchors.shape[1]}) expected, got shape {negatives.shape}")
    anchors, positives, negatives = (x.astype(jnp.float32) for x in (anchors, positives, negatives))
    positive = jnp.sum(anchors * positives, axis=1, keepdims=True)
    negative = jnp.matmul(anchors, negatives.T, precision=EXACT)
    return jnp.exp(jnp.concatenate([positive, negative], axis=1) / temperature)
