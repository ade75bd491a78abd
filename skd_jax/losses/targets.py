"""Target distributions that stand beside or instead of the label, and the divergence from them."""

import chex
import jax
import jax.numpy as jnp
import optax


def probability_distillation(
    student_logits: chex.Array,
    probabilities: chex.Array,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
) -> chex.Array:
    """KL(probabilities || softmax(student / T)), times T^2 if asked.

    `soft_label_distillation` for a target that is no softmax of logits, such as an average of
    several. No gradient is stopped here.

    Args:
      student_logits: (B, K) floats.
      probabilities: (B, K) floats, rows that sum to 1; softened already, if they are to be.
      temperature: T > 0, of the student alone.
      scale_by_t2: multiply by T^2.

    Returns:
      (B,) float32, in nats (times T^2).

    Raises:
      ValueError: if the shapes differ or the temperature is not positive.
    """
    if student_logits.ndim != 2 or student_logits.shape != probabilities.shape:
        raise ValueError(
            "student logits and probabilities must share one shape (B, K), got "
            f"{student_logits.shape} and {probabilities.shape}"
        )
    if not isinstance(temperature, jax.core.Tracer) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    divergence = optax.losses.kl_divergence(student, probabilities.astype(jnp.float32))
    return divergence * temperature**2 if scale_by_t2 else divergence


def virtual_teacher(
    labels: chex.Array, num_classes: int, temperature: float, correct: float = 0.99
) -> chex.Array:
    """Soft labels of the teacher that is designed by hand in teacher-free distillation.

    It gives the label's class the probability a and shares 1 - a among the others:

        u_k = a if k = y, else (1 - a) / (K - 1);   target = softmax(u / T)

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020.
    As in the authors' code the probabilities u themselves are what is divided by T and put through
    the softmax: the target is much nearer to uniform than u.

    Args:
      labels: (B,) integer class ids in [0, K).
      num_classes: K, 2 or more.
      temperature: T > 0.
      correct: a in (0, 1).

    Returns:
      (B, K) float32, rows that sum to 1.

    Raises:
      ValueError: if there are fewer than two classes or the temperature is not positive.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    others = (1.0 - correct) / (num_classes - 1)
    label = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return jax.nn.softmax((others + (correct - others) * label) / temperature)


def progressive_targets(
    labels: chex.Array, previous: chex.Array, alpha: float | chex.Array
) -> chex.Array:
    """(1 - alpha) y + alpha p: the label, softened by what was predicted before.

    Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021,
    eq. 5. An example without a prediction, a row of zeros, keeps its label.

    Args:
      labels: (B,) integer class ids in [0, K).
      previous: (B, K) probabilities, or zeros.
      alpha: share of the prediction in [0, 1].

    Returns:
      (B, K) float32, rows that sum to 1.
    """
    previous = previous.astype(jnp.float32)
    label = jax.nn.one_hot(labels, previous.shape[-1], dtype=jnp.float32)
    seen = jnp.any(previous > 0, axis=-1, keepdims=True)
    return jnp.where(seen, (1.0 - alpha) * label + alpha * previous, label)
