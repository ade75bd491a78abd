"""Which lowering computes which 3-D convolution: one table for all backends.

benchmarks/convolutions.md holds what it is chosen from; `python -m benchmarks.convolutions` measures it on any machine.
A condition looks at a `Convolution`; of a table's rows the first that holds is taken.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from skd_jax.models import onednn
from skd_jax.models.depthwise import Triple


class Convolution(NamedTuple):
    """What a choice depends on.

    Attributes:
      kernel_shape: (kt, kh, kw, C // groups, features).
      strides: steps over (T, H, W).
      padding: zeros on each side of (T, H, W).
      groups: of channels and features.
      dtype: of clips and kernel.
    """

    kernel_shape: tuple[int, ...]
    strides: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    groups: int = 1
    dtype: Any = jnp.float32


def every(convolution: Convolution) -> bool:
    """Holds for all that no row before has taken."""
    return True


def one_kernel_per_channel(convolution: Convolution) -> bool:
    return convolution.groups > 1 and convolution.kernel_shape[3:] == (1, convolution.groups)


def pointwise(convolution: Convolution) -> bool:
    window, padding = convolution.kernel_shape[:3], convolution.padding
    return window == (1, 1, 1) and not any(padding) and convolution.groups == 1


def onednn_computes(convolution: Convolution) -> bool:
    wanted = convolution.groups == 1 and convolution.dtype == jnp.float32
    return wanted and onednn.available()


def over_time_alone(convolution: Convolution) -> bool:
    window, strides = convolution.kernel_shape[1:3], convolution.strides[1:]
    idle = window == strides == (1, 1) and not any(convolution.padding[1:])
    return idle and convolution.groups == 1


TABLE = (
    # backend, convolutions, lowering
    ("cpu", one_kernel_per_channel, "depthwise"),
    ("cpu", onednn_computes, "direct"),
    ("cpu", pointwise, "matmul"),
    ("cpu", over_time_alone, "temporal"),
    # With several groups "plain" is up to a fifth quicker, but XLA does not compile all of its gradients.
    ("cpu", every, "folded"),
    ("gpu", every, "plain"),  # not measured yet
    ("tpu", every, "plain"),  # not measured yet
)

# Channels below which a convolution has few, and from which it has many.
FEW, MANY = 16, 128


def one_temporal_tap(convolution: Convolution) -> bool:
    return convolution.kernel_shape[0] == 1


def strided_in_time(convolution: Convolution) -> bool:
    return convolution.strides[0] > 1


def strided_in_space(convolution: Convolution) -> bool:
    return convolution.strides[1:] != (1, 1)


def few_channels(convolution: Convolution) -> bool:
    return convolution.kernel_shape[3] < FEW


def many_channels(convolution: Convolution) -> bool:
    return convolution.kernel_shape[3] >= MANY


# The forms (`skd_jax.models.folded`) that the folded lowering takes on CPU, where its gradient towards
# the kernel is written out.
FORWARD_FORMS = (
    (one_temporal_tap, "side_by_side"),
    (strided_in_time, "side_by_side"),
    (few_channels, "side_by_side"),
    (many_channels, "side_by_side"),
    (every, "spread"),
)
CLIP_GRADIENT_FORMS = ((strided_in_space, "phased"), (every, "side_by_side"))

# Features from which the written kernel gradient pays; below, its many small products and copies
# cost more than they save (benchmarks/cpu_steps.md).
WRITTEN_FROM = 64


def gradient_is_written() -> bool:
    """Whether gradients towards the kernel are `folded.kernel_gradient`, not XLA's own.

    It goes over the clip in pieces that fit a CPU's cache, too small to keep an accelerator busy.
    """
    return jax.default_backend() == "cpu"


def choose_lowering(
    backend: str,
    kernel_shape: tuple[int, ...],
    strides: Triple,
    padding: Triple,
    groups: int,
    dtype: jnp.dtype,
) -> str:
    """The lowering of `TABLE`; "plain" on a backend that it does not know.

    Args:
      backend: "cpu", "gpu" or "tpu".
      kernel_shape, strides, padding, groups, dtype: see `Convolution`.
    """
    convolution = Convolution(kernel_shape, strides, padding, groups, dtype)
    rows = ((fits, name) for place, fits, name in TABLE if place == backend)
    return first_that_holds((*rows, (every, "plain")), convolution)


def first_that_holds(rows, convolution: Convolution) -> str:
    """The name in the first row (condition, name) whose condition holds."""
    return next(name for fits, name in rows if fits(convolution))
