"""Cosines of vectors, and SimSiam's similarity made of them."""

import chex
import jax
import jax.numpy as jnp

# Added to the squared norm of a vector before the root, so that the cosine and its gradient are
# finite at zero; vectors longer than 1e-3 do not feel it in float32.
NORM_EPSILON = 1e-12


def cosine(first: chex.Array, second: chex.Array) -> chex.Array:
    """Cosine of the angle between two batches of vectors, finite at zero.

    Args:
      first: (..., D) floats.
      second: (..., D) floats.

    Returns:
      (...) float32 in [-1, 1]; 0 where either vector is zero.
    """
    return jnp.sum(normalise(first) * normalise(second), axis=-1)


def siamese_similarity(prediction: chex.Array, projection: chex.Array) -> chex.Array:
    """Negative cosine similarity -cos(p, stop_gradient(z)) of SimSiam.

    Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, eq. 1 and 3.

    Args:
      prediction: (B, D) p, the predictor's output for one view.
      projection: (B, D) z, the projector's output for the other view.

    Returns:
      (B,) float32 in [-1, 1]; -1 where the two point the same way.

    Raises:
      ValueError: if the shapes differ.
    """
    if prediction.ndim != 2 or prediction.shape != projection.shape:
        raise ValueError(
            "prediction and projection must share one shape (B, D), got "
            f"{prediction.shape} and {projection.shape}"
        )
    # The other view is a constant target: were it free to move too, both could meet in one
    # constant vector, the collapse that SimSiam's stop-gradient prevents.
    return -cosine(prediction, jax.lax.stop_gradient(projection))


def normalise(vectors: chex.Array) -> chex.Array:
    """Vectors (..., D) divided by their length, float32; zero stays zero, with a finite gradient."""
    vectors = vectors.astype(jnp.float32)
    square = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(square + NORM_EPSILON)
