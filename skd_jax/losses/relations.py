"""Losses that compare how the examples of a batch relate to each other, in two networks.

All of them see the whole batch: under `axis_name` the features of all replicas are gathered, every
replica computes the same scalar, and the mean of the replicas' gradients is the gradient of the loss
of the whole batch. The widths of the two networks' features may differ. The teacher's features are
constants.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from skd_jax.losses.vectors import normalise
from skd_jax.precision import EXACT

# The authors' constant in the logarithm and beside the norms (passalis/probabilistic_kt).
PKT_EPSILON = 1e-7


def probabilistic_transfer(
    student: chex.Array, teacher: chex.Array, axis_name: str | None = None
) -> chex.Array:
    """PKT: divergence of the examples' similarities as probabilities.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV
    2018. With k_ij = (cos(f_i, f_j) + 1) / 2 and p_ij = k_ij / sum_j k_ij it is the mean over all
    B^2 pairs of p^t log(p^t / p^s), as in the authors' code: 1 / B times the mean divergence of a
    row, so that it shrinks as the batch grows. An example's similarity to itself is among them.

    Args:
      student: (B, ...) floats, flattened to vectors.
      teacher: (B, ...) floats, a constant.
      axis_name: the replicas' axis, whose examples are all compared; or None.

    Returns:
      Float32 scalar, 0 or above up to rounding.
    """
    student, teacher = _vectors(student, teacher, axis_name)

    def probabilities(vectors):
        vectors = normalise(vectors)
        kernel = (jnp.matmul(vectors, vectors.T, precision=EXACT) + 1) / 2
        return kernel / kernel.sum(axis=1, keepdims=True)

    p, q = probabilities(teacher), probabilities(student)
    return jnp.mean(p * jnp.log((p + PKT_EPSILON) / (q + PKT_EPSILON)))


def relational_distances(
    student: chex.Array, teacher: chex.Array, axis_name: str | None = None
) -> chex.Array:
    """RKD-D: smooth-L1 of the examples' distances, each network's divided by their mean.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 5 to 7. The mean is that of the
    positive distances; the result is the mean over all B^2 pairs, the diagonal's zeros among them.

    Args:
      student, teacher, axis_name: as `probabilistic_transfer`.

    Returns:
      Float32 scalar.
    """
    student, teacher = _vectors(student, teacher, axis_name)
    distances = [_over_mean(_distances(_differences(x))) for x in (student, teacher)]
    return optax.losses.huber_loss(*distances, delta=1.0).mean()


def relational_angles(
    student: chex.Array, teacher: chex.Array, axis_name: str | None = None
) -> chex.Array:
    """RKD-A: smooth-L1 of the cosines of the angles that three examples make.

    Park et al., CVPR 2019, eq. 8 and 9: cos(f_i - f_j, f_k - f_j) for all i, j, k, averaged over all
    B^3; 0 where two of the three are the same example.

    Args:
      student, teacher, axis_name: as `probabilistic_transfer`.

    Returns:
      Float32 scalar.
    """
    student, teacher = _vectors(student, teacher, axis_name)

    def cosines(vectors):
        differences = _differences(vectors)
        distances = _distances(differences)
        directions = differences / jnp.where(distances > 0, distances, 1.0)[..., None]
        return jnp.einsum("jid,jkd->jik", directions, directions, precision=EXACT)

    return optax.losses.huber_loss(cosines(student), cosines(teacher), delta=1.0).mean()


def similarity_preserving(
    student: chex.Array, teacher: chex.Array, axis_name: str | None = None
) -> chex.Array:
    """SP: squared difference of the examples' Gram matrices, rows of unit length, over B^2.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, eq. 1 to 4.

    Args:
      student, teacher, axis_name: as `probabilistic_transfer`.

    Returns:
      Float32 scalar in [0, 4 / B].
    """
    student, teacher = _vectors(student, teacher, axis_name)
    # The rows of F F^T / scale have the same directions, and large maps do not overflow.
    grams = [
        normalise(jnp.matmul(x, x.T, precision=EXACT)) for x in map(_unit_scale, (student, teacher))
    ]
    return jnp.mean(jnp.square(grams[0] - grams[1]))


def _vectors(
    student: chex.Array, teacher: chex.Array, axis_name: str | None
) -> tuple[chex.Array, chex.Array]:
    """Both as (B, D) float32 of all replicas' examples, the teacher's stopped."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ValueError(
            "student and teacher features (B, ...) of the same examples expected, got shapes "
            f"{student.shape} and {teacher.shape}"
        )
    pair = [x.reshape(len(x), -1).astype(jnp.float32) for x in (student, teacher)]
    if axis_name is not None:
        pair = [jax.lax.all_gather(x, axis_name, tiled=True) for x in pair]
    return pair[0], jax.lax.stop_gradient(pair[1])


def _unit_scale(vectors: chex.Array) -> chex.Array:
    largest = jnp.max(jnp.linalg.norm(jax.lax.stop_gradient(vectors), axis=1))
    return vectors / jnp.where(largest > 0, largest, 1.0)


def _differences(vectors: chex.Array) -> chex.Array:
    """(B, B, D): [j, i] is f_i - f_j."""
    return vectors[None] - vectors[:, None]


def _distances(differences: chex.Array) -> chex.Array:
    square = jnp.sum(differences * differences, axis=-1)
    # The root of what is never zero: its gradient at zero would be infinite, and 0 x inf is NaN.
    apart = square > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def _over_mean(distances: chex.Array) -> chex.Array:
    positive = jnp.sum(distances > 0)
    mean = distances.sum() / jnp.maximum(positive, 1)
    return distances / jnp.where(mean > 0, mean, 1.0)
