"""Self-supervision by turned clips (SSKD): which clip was turned, and whose answers to learn from.

Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, as in the authors' code.
"""

import chex
import jax.numpy as jnp

from skd_jax.losses.vectors import normalise
from skd_jax.precision import EXACT


def turned_similarity(embedding: chex.Array) -> chex.Array:
    """Cosine of every turned clip with every upright one: logits of "which clip is this made of?".

    It compares the examples that are given, and these alone: gather those of all replicas first.
    The answer for row 3 b + r - 1 is b. No gradient is stopped here.

    Args:
      embedding: (B, 4, D) floats; r = 0 is the upright clip, r = 1 to 3 its turns.

    Returns:
      (3 B, B) float32 in [-1, 1].

    Raises:
      ValueError: another shape.
    """
    if embedding.ndim != 3 or embedding.shape[1] != 4:
        raise ValueError(f"embeddings (B, 4, D) of all turns expected, got shape {embedding.shape}")
    directions = normalise(embedding)
    upright, turned = directions[:, 0], directions[:, 1:].reshape(-1, embedding.shape[-1])
    return jnp.matmul(turned, upright.T, precision=EXACT)


def best_ranked(scores: chex.Array, right: chex.Array, share: float) -> chex.Array:
    """Which examples to learn from: all right ones and a share of the wrong, the best ranked.

    An example's rank is the place of the right answer among its scores, and the examples that are
    given are compared by it. Of those with the same rank the first are kept.

    Args:
      scores: (N, K) floats, the teacher's.
      right: (N,) integers in [0, K), the right answers.
      share: of the wrong ones that are kept, rounded down; in [0, 1].

    Returns:
      (N,) float32 of 0 and 1, without a gradient.
    """
    own = jnp.take_along_axis(scores, right[:, None], axis=1)
    rank = jnp.sum(scores > own, axis=1)
    wrong = jnp.sum(rank > 0)
    keep = len(scores) - wrong + jnp.floor(share * wrong).astype(jnp.int32)
    place = jnp.argsort(jnp.argsort(rank, stable=True))
    return (place < keep).astype(jnp.float32)
