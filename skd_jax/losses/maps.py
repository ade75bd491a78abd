"""Losses between feature maps."""

import chex
import jax.numpy as jnp

from skd_jax.losses.vectors import normalise


def attention_transfer(student_map: chex.Array, teacher_map: chex.Array) -> chex.Array:
    """Squared difference of the normalised energies, the mean over positions.

    Args:
      student_map: (B, T, H, W, C).
      teacher_map: (B, T, H, W, C').

    Returns:
      (B,) float32.
    """

    def attention(maps):
        return normalise(jnp.square(maps.astype(jnp.float32)).mean(-1).reshape(len(maps), -1))

    return jnp.square(attention(student_map) - attention(teacher_map)).mean(-1)
