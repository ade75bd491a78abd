"""Maps brought to another grid."""

import chex
import jax.numpy as jnp
import numpy as np

from skd_jax.precision import EXACT


def resize_mean(x: chex.Array, size: tuple[int, int, int]) -> chex.Array:
    """A map on another grid by adaptive averaging: cell i of n takes the mean of the old cells it meets.

    Along each axis of m old cells these are floor(i m / n) to ceil((i + 1) m / n) - 1, as in PyTorch's
    adaptive_avg_pool3d: average pooling where n divides m, repetition of the nearest where m
    divides n, the same map where they are equal.

    Args:
      x: (B, T, H, W, K) floats.
      size: new T, H, W.

    Returns:
      (B, *size, K) float32.
    """
    if x.ndim != 5:
        raise ValueError(f"a map (B, T, H, W, K) expected, got shape {x.shape}")
    x = x.astype(jnp.float32)
    for axis, new in enumerate(size, start=1):
        old = x.shape[axis]
        if old != new:
            x = jnp.tensordot(_cells(old, new), x, (1, axis), precision=EXACT)
            x = jnp.moveaxis(x, 0, axis)
    return x


def _cells(old: int, new: int) -> np.ndarray:
    first = np.arange(new) * old // new
    last = -(-(np.arange(new) + 1) * old // new)
    place = np.arange(old)
    inside = (place >= first[:, None]) & (place < last[:, None])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
