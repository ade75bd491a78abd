"""Sparse codes of feature maps over a learned dictionary.

Tran, Gabbouj and Iosifidis, "Knowledge Distillation By Sparse Representation Matching", arXiv
2103.17012 (2021); formulas as in the authors' code, viebboy/SRM. A feature vector x of C channels is
compared with every column of a dictionary D (C x K), its atoms:

    kappa = sigmoid(D^T x + c)                       c is one learned number
    s     = kappa where it is among the k largest, else 0      (the code)
    x_hat = D s                                      (the reconstruction)

What is equal to the k-th largest stays too, so a code may have more than k entries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from skd_jax.precision import EXACT


class SparseCode(NamedTuple):
    """What `SparseCoding` makes of feature vectors (..., C); all float32.

    Attributes:
      similarity: (..., K) in (0, 1), kappa.
      code: (..., K), s.
      reconstruction: (..., C), x_hat.
    """

    similarity: jax.Array
    code: jax.Array
    reconstruction: jax.Array


def dictionary_size(channels: int, mu: float, sparsity: float) -> tuple[int, int]:
    """(atoms K, entries k of a code) for the teacher's channels C.

    K = int(C mu), k = max(1, int(C mu lambda)); the authors try mu 1.5 to 4 and lambda 0.01 to 0.03.

    Args:
      channels: C of the teacher's map, for teacher and student.
      mu: atoms for each channel.
      sparsity: lambda, entries of a code for each atom.
    """
    return int(channels * mu), max(1, int(channels * mu * sparsity))


def keep_largest(similarity: jax.Array, count: int) -> jax.Array:
    """Zero for all but the `count` largest entries of the last axis; ties with the last are kept.

    The gradient passes through what is kept; which entries these are has none.

    Args:
      similarity: (..., K).
      count: from 1 to K.
    """
    threshold = jax.lax.top_k(jax.lax.stop_gradient(similarity), count)[0][..., -1:]
    return jnp.where(similarity >= threshold, similarity, 0)


class SparseCoding(nn.Module):
    """The block: feature vectors (..., C) of any map to their `SparseCode`.

    Parameters: "dictionary" (C, K) from U(-sqrt(6 / K), sqrt(6 / K)), which is PyTorch's
    kaiming_uniform_ of a tensor of that shape, and "intercept" () from U(-1, 1). Computed in float32
    whatever the maps are: in bfloat16 many similarities would tie.

    Attributes:
      atoms: K.
      active: k, entries of a code.
    """

    atoms: int
    active: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> SparseCode:
        """See the class.

        Raises:
          ValueError: more entries than atoms, or none of either.
        """
        if not 1 <= self.active <= self.atoms:
            raise ValueError(f"a code of {self.active} entries over {self.atoms} atoms cannot be")
        x = x.astype(jnp.float32)
        dictionary = self.param(
            "dictionary",
            nn.initializers.variance_scaling(2.0, "fan_out", "uniform"),
            (x.shape[-1], self.atoms),
        )
        intercept = self.param(
            "intercept", lambda key: jax.random.uniform(key, (), minval=-1.0, maxval=1.0)
        )
        similarity = jax.nn.sigmoid(jnp.matmul(x, dictionary, precision=EXACT) + intercept)
        code = keep_largest(similarity, self.active)
        return SparseCode(similarity, code, jnp.matmul(code, dictionary.T, precision=EXACT))


class SparseCodings(nn.Module):
    """A block for each of several maps.

    Attributes:
      sizes: (atoms, active) of each.
    """

    sizes: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...]) -> tuple[SparseCode, ...]:
        """One code for each map.

        Raises:
          ValueError: there are not as many maps as sizes.
        """
        return tuple(
            SparseCoding(atoms, active, name=f"map{number}")(x)
            for number, ((atoms, active), x) in enumerate(zip(self.sizes, maps, strict=True))
        )
