"""Contrastive losses against a memory of the training videos."""

import chex
import jax.numpy as jnp

# As the authors add to the denominators (HobbitLong/RepDistiller).
NCE_EPSILON = 1e-7


def noise_contrastive(
    scores: chex.Array, num_noise: int, counted: chex.Array | None = None
) -> chex.Array:
    """CRD's noise-contrastive estimate: tell the positive from M negatives drawn from all videos.

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, eq. 18; with
    h(s) = s / (s + M / N) it is -log h(s_0) - sum_{m >= 1} log(1 - h(s_m)).

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
