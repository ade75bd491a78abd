"""A table with a row for each training video, divided over the replicas.

    table = rows.empty(num_videos, num_classes)       # part of a method's state
    old = rows.read(table, batch["index"], axis_name)
    table = rows.write(table, batch["index"], new, axis_name)

Within a step every replica holds a block of consecutive rows, ceil(N / replicas) of them, so that
memory does not grow with the number of replicas; `parallel` cuts the table when it is put on the
devices and joins it when it is fetched. What leaves the devices, a checkpoint say, always has all N
rows and knows nothing of replicas.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Rows:
    """N rows of one width.

    Attributes:
      values: float32 (N, D); within a step that is mapped over replicas, this replica's block.
      count: N.
    """

    values: chex.Array
    count: int = flax.struct.field(pytree_node=False)


def is_rows(value) -> bool:
    """Whether a node of a tree is such a table."""
    return isinstance(value, Rows)


def empty(count: int, width: int) -> Rows:
    """A table of zeros, (count, width) float32."""
    return Rows(jnp.zeros((count, width), jnp.float32), count)


def padded(table: Rows, replicas: int) -> np.ndarray:
    """All rows as an array that divides evenly over the replicas, zeros at its end."""
    missing = -table.count % replicas
    return np.pad(np.asarray(table.values), ((0, missing), (0, 0)))


def read(table: Rows, index: chex.Array, axis_name: str | None = None) -> chex.Array:
    """The rows of this replica's examples.

    Each replica moves as much as one gather and one reduce-scatter of the global batch's rows, not
    the table.

    Args:
      table: the whole table, or with `axis_name` this replica's block.
      index: (B,) integers in [0, N).
      axis_name: the replicas' axis, or None outside one.

    Returns:
      (B, D) float32.
    """
    if axis_name is None:
        return table.values[index]
    wanted = jax.lax.all_gather(index, axis_name)
    place, mine = _place(table, wanted, axis_name)
    found = jnp.where(mine[..., None], table.values[jnp.where(mine, place, 0)], 0.0)
    return jax.lax.psum_scatter(found, axis_name)


def write(table: Rows, index: chex.Array, values: chex.Array, axis_name: str | None = None) -> Rows:
    """The table with the rows of all replicas' examples replaced.

    An example that is twice in the global batch, as where an epoch ends and the next begins, leaves
    the mean of its values: the result does not depend on the order of the examples.

    Args:
      table: the whole table, or with `axis_name` this replica's block.
      index: (B,) integers in [0, N).
      values: (B, D) floats.
      axis_name: the replicas' axis, or None outside one.
    """
    values = values.astype(jnp.float32)
    if axis_name is not None:
        index, values = jax.lax.all_gather((index, values), axis_name, tiled=True)
    same = (index[:, None] == index).astype(jnp.float32)
    # Without full precision a GPU or TPU would round what is only copied.
    values = jnp.matmul(same, values, precision=jax.lax.Precision.HIGHEST) / same.sum(1)[:, None]
    if axis_name is not None:
        place, mine = _place(table, index, axis_name)
        index = jnp.where(mine, place, len(table.values))  # beyond the end: dropped
    return table.replace(values=table.values.at[index].set(values, mode="drop"))


def _place(table: Rows, index: chex.Array, axis_name: str) -> tuple[chex.Array, chex.Array]:
    """Where rows lie in this replica's block, and whether they do."""
    place = index - jax.lax.axis_index(axis_name) * len(table.values)
    return place, (place >= 0) & (place < len(table.values))
