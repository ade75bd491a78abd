"""What a training step costs on many devices, on paper.

Every replica computes its own batch and then averages with the others. In n replicas a ring
all-reduce of b bytes sends and receives 2 (n - 1) / n * b bytes on each (Patarasuk and Yuan,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009), and a collective
takes some time however small it is. Nothing of it is hidden behind computation: the reduction of
the gradients waits for all of them, and each BatchNorm waits for its statistics.

    bytes         4 (P + S + M), one all-reduce: parameters, running statistics, metrics
                  + 8 S passes for synchronised BatchNorm: forward the mean and the mean square of
                  every channel, backward the gradients of both
    communication 2 (n - 1) / n * bytes / link + collectives * latency
    computation   6 * MACs * clips / (peak * utilisation): forward 2 FLOP for each
                  multiply-accumulate, backward twice as many
    share         communication / (communication + computation)

P, S and M are counts of float32 numbers, whatever the compute dtype. S counts mean and variance, and
`passes` is 2 where two views pass one after the other. Left out: augmentation, the heads' MACs, the
vectors that SKD-SRL's diagnostics exchange (8 D^2 bytes at most), and what XLA saves where it joins
BatchNorms that do not depend on each other.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from skd_jax import augment, methods, step
from skd_jax.models.cost import cost


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a device can do; the figures are the reader's.

    Attributes:
      link: bytes a second that a device sends while it receives as many.
      peak: FLOP a second in the compute dtype.
      utilisation: share of the peak that the step reaches.
      latency: seconds of an all-reduce of a few bytes.
    """

    link: float
    peak: float
    utilisation: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Step:
    """One replica's share of a step.

    Attributes:
      parameters, statistics, metrics: float32 numbers averaged over the replicas.
      batch_norms: how often a step passes through a BatchNorm layer; 0 if it is not synchronised.
      synchronised: float32 numbers that these passes average, forward.
      flops: of the networks, forward and backward.
    """

    parameters: int
    statistics: int
    metrics: int
    batch_norms: int
    synchronised: int
    flops: float

    @property
    def fused_bytes(self) -> int:
        """Of the one all-reduce of gradients, running statistics and metrics."""
        return 4 * (self.parameters + self.statistics + self.metrics)

    @property
    def batch_norm_bytes(self) -> int:
        """Of synchronised BatchNorm's all-reduces, forward and backward."""
        return 2 * 4 * self.synchronised

    @property
    def collectives(self) -> int:
        """All-reduces if none of them are joined."""
        return 1 + 2 * self.batch_norms


def ring_seconds(nbytes: float, replicas: int, link: float) -> float:
    """Seconds of a ring all-reduce of `nbytes` bytes over links of `link` bytes a second."""
    return 2 * (replicas - 1) / replicas * nbytes / link


def communication(work: Step, machine: Machine, replicas: int) -> float:
    """Seconds a step spends on its collectives; 0 for one replica."""
    if replicas == 1:
        return 0.0
    nbytes = work.fused_bytes + work.batch_norm_bytes
    return ring_seconds(nbytes, replicas, machine.link) + work.collectives * machine.latency


def computation(work: Step, machine: Machine) -> float:
    """Seconds a step spends computing."""
    return work.flops / (machine.peak * machine.utilisation)


def share(work: Step, machine: Machine, replicas: int) -> float:
    """Communication's share of a step, in [0, 1)."""
    seconds = communication(work, machine, replicas)
    return seconds / (seconds + computation(work, machine))


def step_of(method: methods.Method, clip: tuple[int, int, int], batch: int) -> Step:
    """The step of a method; shapes only, nothing is computed.

    Args:
      method: whose networks and metrics are counted.
      clip: (T, H, W) of a view, H = W.
      batch: videos of one replica.
    """
    settings, tx = step.StepSettings(total_steps=1), optax.identity()
    state = jax.eval_shape(
        lambda: step.create_state(method, tx, jax.random.key(0), (*clip, 3), settings)
    )
    train_step = functools.partial(
        step.train_step,
        method=method,
        tx=tx,
        augmentation=augment.AugmentSettings(crop=clip[1]),
        settings=settings,
    )
    _, metrics = jax.eval_shape(train_step, state, batch_shapes(method, clip, 1))
    numbers = jax.tree.map(lambda x: x.size, (state.params, state.batch_stats))
    parameters, statistics = (sum(jax.tree.leaves(tree)) for tree in numbers)
    passes = 1 if method.views_together else method.num_views
    layers = len(jax.tree.leaves(state.batch_stats)) // 2  # a mean and a variance each
    synced = passes if method.sync_batch_norm else 0
    macs = cost(method.model, clip).macs
    return Step(
        parameters=parameters,
        statistics=statistics,
        metrics=len(metrics) - 1,  # grad_norm is made of what has been averaged
        batch_norms=layers * synced,
        synchronised=statistics * synced,
        flops=6.0 * macs * batch * method.num_views,
    )


def batch_shapes(
    method: methods.Method, clip: tuple[int, int, int], videos: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch as `train_step` takes it, shapes only; the canvas is as large as the clip."""
    views = method.num_views
    shapes = {
        "clips": ((videos, views, *clip, 3), jnp.uint8),
        "size": ((videos, views, 2), jnp.int32),
        "flip": ((videos, views), jnp.bool),
        "key": ((videos, 2), jnp.uint32),
        "label": ((videos,), jnp.int32),
        "index": ((videos,), jnp.int32),
    }
    return {name: jax.ShapeDtypeStruct(*value) for name, value in shapes.items()}


def table(work: Step, machine: Machine, replicas: list[int], clips: int) -> list[str]:
    """Lines of a table: milliseconds, share, and clips a second of the whole.

    Args:
      work: a replica's step.
      machine: what it runs on.
      replicas: numbers of devices, a line each.
      clips: of one replica's step.
    """
    lines = [f"{'devices':>7}{'computation':>13}{'communication':>15}{'share':>8}{'clips/s':>14}"]
    computing = computation(work, machine)
    for n in replicas:
        waiting = communication(work, machine, n)
        lines.append(
            f"{n:>7}{computing * 1e3:>10.1f} ms{waiting * 1e3:>12.2f} ms"
            f"{share(work, machine, n):>8.1%}{n * clips / (computing + waiting):>14,.0f}"
        )
    return lines
