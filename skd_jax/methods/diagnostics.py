"""Metrics that show whether two views agree and whether the representation collapses."""

import chex
import jax
import jax.numpy as jnp

from skd_jax import losses


def accuracy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Share of right top-1 predictions, float32 scalar.

    Args:
      logits: (B, V, K) floats.
      labels: (B,) integers.
    """
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels[:, None], dtype=jnp.float32)


def view_metrics(
    logits: chex.Array, embedding: chex.Array, axis_name: str | None
) -> dict[str, chex.Array]:
    """Agreement of the first two views and spread of their embeddings.

    `embedding_std` is the standard deviation of a feature of the L2-normalised embedding, averaged
    over features and multiplied by sqrt(D): near 1 for directions spread over the sphere, 0 for a
    collapsed representation (Chen and He, CVPR 2021, fig. 2). `embedding_rank` is the effective
    rank of the centred embeddings as the participation ratio (tr C)^2 / tr(C^2) of their covariance
    C, between 1 and D; it needs no eigenvalues and so costs nothing on any accelerator.

    Args:
      logits: (B, V, K), V >= 2.
      embedding: (B, V, D).
      axis_name: the replicas' axis; the statistics are those of all replicas' examples.

    Returns:
      view_agreement, view_cosine, embedding_std, embedding_rank: float32 scalars.
    """
    labels = jnp.argmax(logits, axis=-1)
    std, rank = spread_and_rank(embedding, axis_name)
    return {
        "view_agreement": jnp.mean(labels[:, 0] == labels[:, 1], dtype=jnp.float32),
        "view_cosine": losses.cosine(embedding[:, 0], embedding[:, 1]).mean(),
        "embedding_std": std,
        "embedding_rank": rank,
    }


@jax.named_scope("spread_and_rank")
def spread_and_rank(embedding: chex.Array, axis_name: str | None) -> tuple[chex.Array, chex.Array]:
    """Spread of the L2-normalised vectors and their effective rank, as `view_metrics` defines them.

    Over replicas either the vectors are gathered or their moments averaged, whichever moves less: a
    replica never receives more than about 8 D^2 bytes, however many replicas there are.

    Args:
      embedding: (B, V, D).
      axis_name: the replicas' axis, or None.

    Returns:
      (std in [0, 1], rank in [1, D]), float32 scalars.
    """
    vectors = embedding.astype(jnp.float32).reshape(-1, embedding.shape[-1])
    vectors *= jax.lax.rsqrt(
        jnp.sum(vectors * vectors, axis=-1, keepdims=True) + losses.NORM_EPSILON
    )
    dimension = vectors.shape[-1]
    # A gather brings all the vectors, a ring all-reduce of the moments two D x D matrices.
    if axis_name is not None and len(vectors) * jax.lax.axis_size(axis_name) <= 2 * dimension:
        vectors, axis_name = jax.lax.all_gather(vectors, axis_name, tiled=True), None
    mean = vectors.mean(axis=0)
    if axis_name is not None:
        centred = vectors - jax.lax.pmean(mean, axis_name)
        smaller = jax.lax.pmean(centred.T @ centred, axis_name)
        variance = jnp.diag(smaller) / len(vectors)
    else:
        centred = vectors - mean
        # C and the Gram matrix have the same trace and the same sum of squares; take the smaller.
        smaller = centred @ centred.T if len(vectors) < dimension else centred.T @ centred
        variance = jnp.mean(centred * centred, axis=0)
    rank = jnp.trace(smaller) ** 2 / jnp.maximum(jnp.sum(smaller * smaller), losses.NORM_EPSILON)
    return jnp.sqrt(variance).mean() * jnp.sqrt(dimension), rank
