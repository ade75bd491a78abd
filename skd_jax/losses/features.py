"""Losses between the features of two networks for the same example: maps, or what is made of them.

The teacher's features are constants.
"""

import math

import chex
import jax
import jax.numpy as jnp

from skd_jax.losses.resizing import resize_mean
from skd_jax.precision import EXACT

# Below the variance of a normalised map before the root, so that a constant map stays finite.
VARIANCE_EPSILON = 1e-6


def hint(student: chex.Array, teacher: chex.Array) -> chex.Array:
    """FitNet's hint loss: squared difference, the mean over positions and channels.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, there half the sum; the mean
    is that of the codes that compare methods (RepDistiller, FRSKD).

    Args:
      student: (B, ...) floats, behind the regressor.
      teacher: the same shape, a constant.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes differ.
    """
    student, teacher = _pair(student, teacher)
    return jnp.square(student - teacher).mean(axis=tuple(range(1, student.ndim)))


def normalised_hint(student: chex.Array, teacher: chex.Array) -> chex.Array:
    """NFD: `hint` of maps of which every channel has mean 0 and variance 1 over T, H and W.

    Liu et al., "Normalized Feature Distillation for Semantic Segmentation", arXiv 2207.05256, here
    over time too: the student need not imitate the magnitude of the teacher's response.

    Args:
      student: (B, T, H, W, C) floats, behind the regressor; more than one position.
      teacher: the same shape, a constant.

    Returns:
      (B,) float32.

    Raises:
      ValueError: if the shapes differ, or there is a single position.
    """
    student, teacher = _pair(student, teacher)
    if student.ndim != 5 or math.prod(student.shape[1:4]) < 2:
        raise ValueError(
            f"maps (B, T, H, W, C) of more than one position expected, got shape {student.shape}"
        )

    def normal(maps):
        over = (1, 2, 3)
        centred = maps - maps.mean(axis=over, keepdims=True)
        variance = jnp.square(centred).mean(axis=over, keepdims=True)
        return centred * jax.lax.rsqrt(variance + VARIANCE_EPSILON)

    return hint(normal(student), normal(teacher))


def class_similarity(maps: chex.Array, temperature: float = 1.0) -> chex.Array:
    """AICSD's inter-class similarity matrix of class maps, here over T, H and W.

    Mansurian et al., "Adaptive Inter-Class Similarity Distillation for Semantic Segmentation", arXiv
    2308.04243: every class map becomes a distribution over positions, softmax(map / temperature), and
    entry (i, j) is KL(p_j || p_i), as in their code.

    Args:
      maps: (B, T, H, W, K) floats, one map a class.
      temperature: above 0.

    Returns:
      (B, K, K) float32, in nats; 0 on the diagonal.
    """
    flat = maps.astype(jnp.float32).reshape(len(maps), -1, maps.shape[-1])
    log = jax.nn.log_softmax(flat / temperature, axis=1)
    p = jnp.exp(log)
    own = jnp.sum(p * log, axis=1)
    return own[:, None, :] - jnp.einsum("bpi,bpj->bij", log, p, precision=EXACT)


def pool_to_common(first: chex.Array, second: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Two maps on one grid: along each of T, H and W the longer is averaged to the shorter's size.

    By `resize_mean`. Pooling drops detail, which enlarging the smaller would invent.

    Args:
      first, second: (B, T, H, W, C) floats; their sizes and channels may differ.

    Returns:
      Both with the same (T, H, W), float32.
    """
    size = tuple(min(pair) for pair in zip(first.shape[1:4], second.shape[1:4], strict=True))
    return resize_mean(first, size), resize_mean(second, size)


def _pair(student: chex.Array, teacher: chex.Array) -> tuple[chex.Array, chex.Array]:
    if student.shape != teacher.shape:
        raise ValueError(f"features of one shape expected, got {student.shape} and {teacher.shape}")
    return student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))
