"""Data parallelism: one step function on many devices, by pmap or by jit(shard_map).

Both run the same function of one replica's batch with the mapped axis "batch"; they differ in where
the replicas' copies live. `Replicas` hides that from the loop: state goes in and comes out as one
plain tree, batches as the NumPy arrays of this process. Every replica holds a copy of the state, but
for tables of type `rows.Rows`, of which each holds a part.
"""

import concurrent.futures
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from skd_jax import rows
from skd_jax.errors import UserError
from skd_jax.names import look_up

PyTree = Any
AXIS = "batch"


class Replicas(Protocol):
    """How a step is run on all devices of all processes."""

    def put(self, tree: PyTree) -> PyTree:
        """A plain tree, equal in every process, to a copy on every device."""

    def get(self, tree: PyTree) -> PyTree:
        """One copy of a replicated tree, as NumPy arrays; called by all processes at once."""

    def shard(self, batch: PyTree) -> PyTree:
        """This process's part of a batch, sent to its devices, leading axis cut over them."""

    def train(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> (state, metrics); the old state's memory is reused."""

    def evaluate(self, step: Callable) -> Callable:
        """Compiles (variables, batch) -> scores, the scores replicated."""

    def update(self, function: Callable) -> Callable:
        """Compiles (tree, variables, constant) -> tree, without a batch; the old tree's memory is reused."""


class Pmap:
    """`jax.pmap`: every leaf carries a leading axis over the local devices."""

    def put(self, tree):
        count = jax.local_device_count()
        # The axis has the step's own name: another one is another sharding, and compiles it twice.
        copy = jax.pmap(lambda tree, _: tree, AXIS, in_axes=(None, 0))
        plain = _map(lambda x: x, lambda table: None, tree)
        copies = copy(plain, np.arange(count))
        return _map(lambda _, x: x, lambda table, _: self._cut(table), tree, copies)

    def get(self, tree):
        return _map(lambda x: np.asarray(x.addressable_shards[0].data)[0], self._join, tree)

    def _cut(self, table):
        blocks = rows.padded(table, jax.device_count())
        blocks = blocks.reshape(jax.device_count(), -1, blocks.shape[-1])
        return table.replace(values=jax.pmap(lambda x: x, AXIS)(blocks[self._places()]))

    def _join(self, table):
        blocks = np.stack([np.asarray(s.data)[0] for s in table.values.addressable_shards])
        blocks, places = multihost_utils.process_allgather((blocks, self._places()), tiled=True)
        return table.replace(values=np.concatenate(blocks[np.argsort(places)])[: table.count])

    def _places(self):
        """Numbers of this process's replicas on the axis, in the order of its devices."""
        count = jax.local_device_count()
        place = jax.pmap(lambda _: jax.lax.axis_index(AXIS), AXIS)
        return np.asarray([s.data for s in place(np.arange(count)).addressable_shards]).reshape(-1)

    def shard(self, batch):
        devices = jax.local_devices()
        # pmap itself would send NumPy arrays only when the step is called: too late to be ahead.
        sharding = NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec(AXIS))
        count = len(devices)
        parts = jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)
        return jax.device_put(parts, sharding)

    def train(self, step):
        return jax.pmap(functools.partial(step, axis_name=AXIS), AXIS, donate_argnums=(0,))

    def evaluate(self, step):
        return jax.pmap(functools.partial(step, axis_name=AXIS), AXIS)

    def update(self, function):
        return jax.pmap(function, AXIS, static_broadcasted_argnums=2, donate_argnums=0)


class ShardMap:
    """`jax.jit(jax.shard_map)` over a mesh of all devices: global arrays, the path for pods."""

    def __init__(self):
        self._mesh = jax.make_mesh((jax.device_count(),), (AXIS,))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._sharded = NamedSharding(self._mesh, PartitionSpec(AXIS))

    def put(self, tree):
        def place(sharding, x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        def cut(table):
            blocks = rows.padded(table, jax.device_count())
            return table.replace(values=place(self._sharded, blocks))

        return _map(functools.partial(place, self._replicated), cut, tree)

    def get(self, tree):
        def join(table):
            values = multihost_utils.process_allgather(table.values, tiled=True)
            return table.replace(values=values[: table.count])

        return _map(lambda x: np.asarray(x.addressable_shards[0].data), join, tree)

    def shard(self, batch):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self._sharded, x), batch
        )

    def train(self, step):
        step = functools.partial(step, axis_name=AXIS)

        def run(state, batch):
            spec = _specs(state)
            both = (spec, PartitionSpec(AXIS)), (spec, PartitionSpec())
            return self._map(step, *both)(state, batch)

        return jax.jit(run, donate_argnums=(0,))

    def evaluate(self, step):
        step = functools.partial(step, axis_name=AXIS)
        specs = (PartitionSpec(), PartitionSpec(AXIS)), PartitionSpec()
        return jax.jit(self._map(step, *specs))

    def update(self, function):
        def run(tree, variables, constant):
            def on_replica(tree, variables):
                return function(tree, variables, constant)

            specs = (_specs(tree), PartitionSpec()), _specs(tree)
            return self._map(on_replica, *specs)(tree, variables)

        return jax.jit(run, static_argnums=2, donate_argnums=0)

    def _map(self, function, in_specs, out_specs):
        # check_vma must be off: with it, the gradient of a replicated input is already summed over
        # the replicas, and the step's own pmean would leave it n times too large.
        return jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )


def _map(on_array: Callable, on_table: Callable, *trees: PyTree) -> PyTree:
    """`jax.tree.map` with a function for arrays and one for tables."""

    def apply(node, *others):
        return (on_table if rows.is_rows(node) else on_array)(node, *others)

    return jax.tree.map(apply, *trees, is_leaf=rows.is_rows)


def _specs(tree: PyTree) -> PyTree:
    """How a tree lies on the mesh: tables divided, all else replicated."""
    return _map(lambda _: PartitionSpec(), lambda _: PartitionSpec(AXIS), tree)


def create(name: str) -> Replicas:
    """Replicas by name: "pmap" or "shard_map".

    Raises:
      UserError: unknown name.
    """
    return look_up("config.train.replicas", name, {"pmap": Pmap, "shard_map": ShardMap})()


def mean_over_replicas(tree: PyTree, axis_name: str) -> PyTree:
    """`jax.lax.pmean` of a tree in a single all-reduce.

    The leaves travel in one buffer (one for each dtype). Left to themselves they are an all-reduce
    each, which XLA's combiner then joins as it sees fit: on CPU and GPU it hung gradients onto the
    reductions of a synchronised BatchNorm, for which the backward pass waits, and on GPUs it stops
    at 30 MiB. Where it joins many, XLA on GPUs makes the same buffer (its AllReduceContiguous). The
    price: a reduction that waits for the last gradient is not hidden behind the backward pass.

    Args:
      tree: arrays of any shapes, floats.
      axis_name: the replicas' mapped axis; of size 1, nothing is done.

    Returns:
      The same tree with every leaf averaged over the axis.
    """
    if jax.lax.axis_size(axis_name) == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    means = list(leaves)
    with jax.named_scope("mean_over_replicas"):
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            buffer = jnp.concatenate([leaves[i].reshape(-1) for i in places])
            ends = np.cumsum([leaves[i].size for i in places])
            parts = jnp.split(jax.lax.pmean(buffer, axis_name), ends[:-1])
            for i, part in zip(places, parts, strict=True):
                means[i] = part.reshape(leaves[i].shape)
    return structure.unflatten(means)


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Raises a UserError unless a global batch divides over devices and micro-batches."""
    devices = jax.device_count()
    parts = devices * accumulate
    if batch_size < 1 or batch_size % parts:
        nearest = max(parts, round(batch_size / parts) * parts)
        raise UserError(
            f"config.train.batch_size={batch_size} does not divide over {devices} device(s)"
            + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
            + f"; take a multiple of {parts}, such as {nearest}"
        )


def check_compared(name: str, batch_size: int, accumulate: int, least: tuple[int, int]) -> None:
    """Raises a UserError where a method would have nothing to compare or to mix.

    Args:
      name: of the method.
      batch_size: global; divides over devices and micro-batches.
      accumulate: micro-batches.
      least: `Method.least_batch`.
    """
    devices = jax.device_count()
    together = batch_size // accumulate
    own, of_all = least
    if together // devices < own or together < of_all:
        least_size = max(own * devices, -(-of_all // devices) * devices) * accumulate
        raise UserError(
            f"{name} compares or mixes the videos of a micro-batch, and config.train.batch_size={batch_size} leaves "
            f"{together // devices} on each of {devices} device(s) with config.train.accumulate={accumulate}; take a "
            f"batch of {least_size} or more"
        )


def divisible(batch_size: int) -> int:
    """The smallest batch of at least this size that divides over all devices.

    For evaluation, where padding is masked and the size changes no result.
    """
    devices = jax.device_count()
    return -(-batch_size // devices) * devices


def prefetch(
    batches: Iterable[PyTree], place: Callable[[PyTree], PyTree], depth: int = 2
) -> Iterator:
    """Pairs (host batch, placed batch), `depth` batches sent to the devices ahead of use."""
    queue: deque = deque()
    for batch in batches:
        queue.append((batch, place(batch)))
        if len(queue) > depth:
            yield queue.popleft()
    yield from queue


def start_processes(
    coordinator: str | None, count: int | None, index: int | None, cluster: bool
) -> None:
    """Joins the processes of a multi-host run; does nothing for a single process.

    Args:
      coordinator: host:port of process 0, with `count` and `index`; or None.
      count: number of processes.
      index: this process's number.
      cluster: let JAX find the three from the cluster's environment (Slurm, TPU pods, ...).

    Raises:
      UserError: the flags do not fit together, or the others cannot be reached.
    """
    if coordinator is None and not cluster:
        if count is not None or index is not None:
            raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    if not cluster and (count is None or index is None):
        raise UserError("--coordinator needs --num_processes and --process_id too")
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error


_HEARTBEAT = 60.0  # seconds
_WORKING, _DONE, _FAILED = range(3)


def on_first(action: Callable[[], Any]) -> Any:
    """Runs `action` in process 0 while the others wait for it, however long it takes.

    Returns:
      What the action returned, in process 0; None in the others.

    Raises:
      UserError: in the other processes, if the action failed, so that none waits for ever.
      Exception: in process 0, whatever the action raised.
    """
    if jax.process_count() == 1:
        return action()
    if jax.process_index() > 0:
        while (state := _told(None)) == _WORKING:
            pass
        if state == _FAILED:
            raise UserError("process 0 has failed; its own message says why")
        return None
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(action)
        # A collective that waits for half an hour is given up on: the others hear every minute.
        while not concurrent.futures.wait([future], timeout=_HEARTBEAT).done:
            _told(_WORKING)
        _told(_FAILED if future.exception() else _DONE)
    return future.result()


def _told(state: int | None) -> int:
    """What process 0 says; None in the others."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(state or 0)))
