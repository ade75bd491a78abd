"""Losses of feature maps (B, T, H, W, C), one value for each example."""

import chex
import jax
import jax.numpy as jnp

from skd_jax.losses.vectors import normalise

# Activations below this size fade out of an attention map instead of being blown up to length 1.
_SMALLEST = 1e-6


def attention_map(features: chex.Array) -> chex.Array:
    """Where a map is active: mean over channels of its squares, flattened, of length 1.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 1 and 2 with p = 2;
    in 3-D time, height and width are flattened together.

    Args:
      features: (B, T, H, W, C) floats.

    Returns:
      (B, T * H * W) float32 >= 0, L2-normalised; zero, with a finite gradient, where the map is.
    """
    features = features.astype(jnp.float32)
    # The result does not depend on the map's scale, so it is taken out first, as a constant: squares
    # of squares would overflow, or vanish beside the epsilon of the norm.
    largest = jnp.max(jnp.abs(features), axis=(1, 2, 3, 4), keepdims=True)
    features = features / jax.lax.stop_gradient(jnp.maximum(largest, _SMALLEST))
    return normalise(jnp.mean(features * features, axis=-1).reshape(features.shape[0], -1))


def attention_transfer(student_map: chex.Array, teacher_map: chex.Array) -> chex.Array:
    """Mean over the positions of the squared difference of two attention maps.

    In FRSKD's normalisation (Ji et al., CVPR 2021): |a_s - a_t|^2 / (T * H * W) for attention maps a
    of length 1. It lies in [0, 2 / (T * H * W)], so a weight that suits one size of map does not
    suit another. No gradient is stopped here.

    Args:
      student_map: (B, T, H, W, C) floats.
      teacher_map: (B, T, H, W, C') floats; only the number of channels may differ.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if B, T, H or W differ.
    """
    _check(student_map, teacher_map)
    difference = attention_map(student_map) - attention_map(teacher_map)
    return jnp.mean(difference * difference, axis=-1)


def layer_attention(feature_map: chex.Array, deeper_map: chex.Array) -> chex.Array:
    """Mean over the positions of the squared difference between two layers' attention distributions.

    Hou et al., "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019:
    the mean over channels of the squares; the deeper layer's is up-sampled linearly to the size of
    the other; softmax over all positions. No gradient is stopped here.

    Args:
      feature_map: (B, T, H, W, C) floats.
      deeper_map: (B, T', H', W', C') floats.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the maps do not have five axes or their batches differ.
    """
    if feature_map.ndim != 5 or deeper_map.ndim != 5 or len(feature_map) != len(deeper_map):
        raise ValueError(
            "both maps must have shape (B, T, H, W, C) with one B, got "
            f"{feature_map.shape} and {deeper_map.shape}"
        )
    here, deeper = (
        jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1) for x in (feature_map, deeper_map)
    )
    deeper = jax.image.resize(deeper, here.shape, "linear", antialias=False)
    here, deeper = (jax.nn.softmax(x.reshape(len(x), -1)) for x in (here, deeper))
    return jnp.mean(jnp.square(here - deeper), axis=-1)


def masked_hint(student: chex.Array, teacher: chex.Array) -> chex.Array:
    """Squared distance of two features where either is above zero.

    The feature hint of BYOT (Zhang et al., ICCV 2019) as published code has it: after a ReLU, what
    is at zero in both carries no hint. No gradient is stopped here.

    Args:
      student: (B, D) floats.
      teacher: (B, D) floats.

    Returns:
      (B,) float32, a sum over D.

    Raises:
      ValueError: if the shapes differ.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"features must share one shape (B, D), got {student.shape} and {teacher.shape}"
        )
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    active = (student > 0) | (teacher > 0)
    return jnp.sum(jnp.where(active, jnp.square(student - teacher), 0.0), axis=-1)


def _check(first: chex.Array, second: chex.Array) -> None:
    if first.ndim != 5 or second.ndim != 5 or first.shape[:4] != second.shape[:4]:
        raise ValueError(
            "maps must have shapes (B, T, H, W, C) that differ in C alone, got "
            f"{first.shape} and {second.shape}"
        )
