"""Losses of predictions: against labels, and against another network's or view's soft labels."""

import chex
import jax
import jax.numpy as jnp
import optax


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
