"""Tables of rows: read, written, divided over replicas, joined again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import checkpoint, parallel, rows

COUNT, WIDTH = 7, 3
VALUES = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32)
INDEX = np.array([4, 0, 6, 3, 2, 1])
NEW = np.random.default_rng(1).normal(size=(6, WIDTH)).astype(np.float32)


def table():
    return rows.Rows(jnp.asarray(VALUES), COUNT)


def on_replicas(count, index, new):
    """(rows read, table after the write) of a table divided over replicas."""

    def replica(block, index, new):
        mine = rows.Rows(block, COUNT)
        return rows.read(mine, index, "batch"), rows.write(mine, index, new, "batch").values

    blocks = rows.padded(table(), count).reshape(count, -1, WIDTH)
    parts = (x.reshape(count, -1, *x.shape[1:]) for x in (index, new))
    read, written = jax.vmap(replica, axis_name="batch")(blocks, *parts)
    return read.reshape(-1, WIDTH), written.reshape(-1, WIDTH)[:COUNT]


@pytest.mark.parametrize("replicas", [None, 1, 2, 3])
def test_read_and_write(replicas):
    """Seven rows over two or three replicas: the last block has rows to spare."""
    if replicas is None:
        read = rows.read(table(), INDEX)
        written = rows.write(table(), INDEX, NEW).values
    else:
        read, written = on_replicas(replicas, INDEX, NEW)
    np.testing.assert_array_equal(read, VALUES[INDEX])
    want = VALUES.copy()
    want[INDEX] = NEW
    np.testing.assert_array_equal(written, want)


@pytest.mark.parametrize("replicas", [None, 2, 3])
def test_a_row_written_twice_holds_the_mean(replicas):
    index = np.array([5, 5, 2, 0, 2, 1])
    if replicas is None:
        written = rows.write(table(), index, NEW).values
    else:
        written = on_replicas(replicas, index, NEW)[1]
    want = VALUES.copy()
    want[[5, 2, 0, 1]] = (NEW[0] + NEW[1]) / 2, (NEW[2] + NEW[4]) / 2, NEW[3], NEW[5]
    np.testing.assert_allclose(written, want, rtol=1e-6)


def test_padding_divides_evenly():
    assert [rows.padded(table(), n).shape for n in (1, 2, 4, 7, 9)] == [
        (7, 3),
        (8, 3),
        (8, 3),
        (7, 3),
        (9, 3),
    ]
    np.testing.assert_array_equal(rows.padded(table(), 4)[:COUNT], VALUES)


def test_a_new_table_is_zero():
    assert not rows.empty(4, 2).values.any() and rows.empty(4, 2).count == 4


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_put_and_get_return_the_table(name):
    replicas = parallel.create(name)
    tree = {"a": np.float32(2), "memory": table(), "none": None}
    got = replicas.get(replicas.put(tree))
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    np.testing.assert_array_equal(got["memory"].values, VALUES)
    assert got["a"] == 2
    assert checkpoint.flatten(got).keys() == {"a", "memory.values"}
