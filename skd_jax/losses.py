"""Losses as pure functions of arrays: per example, float32, free of Flax.

Every function takes any float dtype, computes in float32 and returns one value for each example,
shape (B,); the caller averages. A gradient is stopped only where the loss is defined by it.
"""

import chex
import jax
import jax.numpy as jnp
import optax

# Added to the squared norm of a vector before the root, so that the cosine and its gradient are
# finite at zero; vectors longer than 1e-3 do not feel it in float32.
NORM_EPSILON = 1e-12


def cross_entropy(
    logits: chex.Array, labels: chex.Array, label_smoothing: float = 0.0
) -> chex.Array:
    """Cross-entropy of softmax(logits) against the labels.

    With smoothing e the target is (1 - e) y + e / K (Szegedy et al., CVPR 2016, eq. 2).

    Args:
      logits: (B, K) floats.
      labels: (B,) integer class ids in [0, K), or (B, K) probabilities. An id outside has no class
        to be compared with: only the smoothing's share e / K of every class is left of its target.
      label_smoothing: e in [0, 1).

    Returns:
      (B,) float32, in nats.

    Raises:
      ValueError: if the shapes or the dtype of the labels do not fit.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (B, K), got {logits.shape}")
    classes = logits.shape[-1]
    if labels.shape == logits.shape:
        targets = labels.astype(jnp.float32)
    elif labels.shape == logits.shape[:1] and jnp.issubdtype(labels.dtype, jnp.integer):
        targets = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    else:
        raise ValueError(
            f"labels must be integers of shape {logits.shape[:1]} or probabilities of shape "
            f"{logits.shape}, got {labels.dtype} of shape {labels.shape}"
        )
    return optax.losses.softmax_cross_entropy(
        logits.astype(jnp.float32), optax.losses.smooth_labels(targets, label_smoothing)
    )


def soft_label_distillation(
    student_logits: chex.Array,
    teacher_logits: chex.Array,
    temperature: float,
    scale_by_t2: bool = False,
) -> chex.Array:
    """KL(softmax(teacher / T) || softmax(student / T)), times T^2 if asked.

    Hinton et al. (2015) scale by T^2 so that the gradient keeps its size when T changes; the
    authors of SKD-SRL left the factor out in their earlier method. No gradient is stopped here:
    whether the teacher's labels are constants is for the method to say.

    Args:
      student_logits: (B, K) floats.
      teacher_logits: (B, K) floats.
      temperature: T > 0, softens both distributions.
      scale_by_t2: multiply by T^2.

    Returns:
      (B,) float32, in nats (times T^2).

    Raises:
      ValueError: if the shapes differ or the temperature is not positive.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student and teacher logits must share one shape (B, K), got "
            f"{student_logits.shape} and {teacher_logits.shape}"
        )
    if not isinstance(temperature, jax.core.Tracer) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    divergence = optax.losses.kl_divergence_with_log_targets(student, teacher)
    return divergence * temperature**2 if scale_by_t2 else divergence


def cosine(first: chex.Array, second: chex.Array) -> chex.Array:
    """Cosine of the angle between two batches of vectors, finite at zero.

    Args:
      first: (..., D) floats.
      second: (..., D) floats.

    Returns:
      (...) float32 in [-1, 1]; 0 where either vector is zero.
    """
    return jnp.sum(_normalise(first) * _normalise(second), axis=-1)


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


def masked_mean(values: chex.Array, mask: chex.Array | None = None) -> chex.Array:
    """Mean over the examples whose mask is true; 0 if there are none.

    Args:
      values: (B,) floats.
      mask: (B,) booleans, or None for all.

    Returns:
      float32 scalar.
    """
    values = values.astype(jnp.float32)
    if mask is None:
        return values.mean()
    # `where` before the sum: a padded example may hold NaN, and NaN * 0 is NaN.
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)


def _normalise(vectors: chex.Array) -> chex.Array:
    vectors = vectors.astype(jnp.float32)
    square = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(square + NORM_EPSILON)
