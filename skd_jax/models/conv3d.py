"""3-D convolution as one function with several lowerings.

All lowerings compute the same sum; they differ in what XLA is asked to run. On CPU, XLA's own 3-D
convolution is many times slower than its 2-D convolution and matrix product, so there the work is
expressed in those.
"""

from collections.abc import Callable

import jax
from jax import lax

from skd_jax.models import choices
from skd_jax.models.choices import Convolution, choose_lowering
from skd_jax.models.depthwise import Triple, depthwise
from skd_jax.models.direct import direct
from skd_jax.models.folded import folded, over_time, pad_first, side_by_side, temporal
from skd_jax.names import look_up


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    strides: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
    groups: int = 1,
    lowering: str | None = None,
) -> jax.Array:
    """Cross-correlates clips with a kernel over time, height and width.

    Args:
      x: clips, shape (B, T, H, W, C).
      kernel: shape (kt, kh, kw, C // groups, features), of the dtype of `x`.
      strides: steps over (T, H, W).
      padding: zeros added on each of the two sides of (T, H, W).
      groups: number of groups that the channels and the features are split into.
      lowering: one of `LOWERINGS`; None takes `choices.choose_lowering` for the default backend,
        whatever device the computation is placed on. On a device of another backend (under
        `jax.default_device`, say) "plain" always runs; what is chosen for "cpu" may not.

    Returns:
      Shape (B, T', H', W', features), T' = (T + 2 * padding - kt) // stride + 1, likewise H', W'.

    Raises:
      ValueError: shapes that do not fit each other, or a lowering that cannot compute this kernel.
      UserError: no such lowering.
    """
    _check(x, kernel, strides, padding, groups)
    kernel, padding = _drop_idle_taps(x.shape, kernel, strides, padding)
    if lowering is None:
        lowering = choose_lowering(
            jax.default_backend(), kernel.shape, strides, padding, groups, x.dtype
        )
    return look_up("lowering", lowering, LOWERINGS)(x, kernel, strides, padding, groups)


def _plain(x, kernel, strides, padding, groups):
    """XLA's own 3-D convolution."""
    x, padding = pad_first(x, kernel.shape, strides, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in padding],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )


def _folded(x, kernel, strides, padding, groups):
    """2-D convolutions over B * T' images, the temporal taps as further channels."""
    written = choices.gradient_is_written() and kernel.shape[4] >= choices.WRITTEN_FROM
    if groups == 1 and written:
        return folded(x, kernel, tuple(strides), tuple(padding))
    return side_by_side(x, kernel, strides, padding, groups)


def _direct(x, kernel, strides, padding, groups):
    """oneDNN's 3-D convolution, float32, where jaxlib has it."""
    if not choices.onednn_computes(Convolution(kernel.shape, strides, padding, groups, x.dtype)):
        raise ValueError(
            "the 'direct' lowering needs one group, float32, the CPU and a jaxlib known to have oneDNN; "
            f"got {groups} group(s), {x.dtype}"
        )
    return direct(x, kernel, tuple(strides), tuple(padding))


def _temporal(x, kernel, strides, padding, groups):
    """A (kt, 1, 1) convolution as a (kt, 1) 2-D convolution over (T, H * W)."""
    if not choices.over_time_alone(Convolution(kernel.shape, strides, padding, groups)):
        raise ValueError(
            "the 'temporal' lowering needs a (kt, 1, 1) kernel without spatial stride or padding, and "
            f"one group; got kernel {kernel.shape}, strides {strides}, padding {padding}, "
            f"groups {groups}"
        )
    compute = temporal if choices.gradient_is_written() else over_time
    return compute(x, kernel, tuple(strides), tuple(padding))


def _matmul(x, kernel, strides, padding, groups):
    """A 1x1x1 convolution as a matrix product; strides by slicing."""
    if not choices.pointwise(Convolution(kernel.shape, strides, padding, groups)):
        raise ValueError(
            "the 'matmul' lowering needs a 1x1x1 kernel without padding or groups; "
            f"got kernel {kernel.shape}, padding {padding}, groups {groups}"
        )
    x = x[:, :: strides[0], :: strides[1], :: strides[2]]
    return lax.dot_general(x, kernel[0, 0, 0], (((4,), (0,)), ((), ())))


def _depthwise(x, kernel, strides, padding, groups):
    """One kernel per channel as shifted multiply-adds."""
    if kernel.shape[3:] != (1, groups):
        raise ValueError(
            "the 'depthwise' lowering needs as many groups as channels and features; "
            f"got kernel {kernel.shape}, groups {groups}"
        )
    return depthwise(x, kernel[:, :, :, 0], tuple(strides), tuple(padding))


LOWERINGS: dict[str, Callable[..., jax.Array]] = {
    "plain": _plain,
    "direct": _direct,
    "folded": _folded,
    "temporal": _temporal,
    "matmul": _matmul,
    "depthwise": _depthwise,
}


def _drop_idle_taps(
    shape: tuple[int, ...], kernel: jax.Array, strides: Triple, padding: Triple
) -> tuple[jax.Array, Triple]:
    """Leaves out kernel taps that see only padding, evenly from both ends.

    The last stages of a network see such maps: 3x3x3 over a single frame is 1x3x3.
    """
    trimmed = []
    for axis in range(3):
        size, taps = shape[axis + 1], kernel.shape[axis]
        steps = (size + 2 * padding[axis] - taps) // strides[axis] + 1
        # Tap i sees positions i - padding, + stride, ..., + (steps - 1) * stride.
        idle_first = padding[axis] - (steps - 1) * strides[axis]
        idle_last = taps - padding[axis] - size
        idle = max(0, min(idle_first, idle_last))
        kernel = lax.slice_in_dim(kernel, idle, taps - idle, axis=axis)
        trimmed.append(padding[axis] - idle)
    return kernel, tuple(trimmed)


def _check(x, kernel, strides, padding, groups) -> None:
    if x.ndim != 5:
        raise ValueError(f"conv3d takes clips of shape (B, T, H, W, C); got shape {x.shape}")
    if kernel.ndim != 5:
        raise ValueError(f"conv3d takes a kernel (kt, kh, kw, C, features); got {kernel.shape}")
    if x.shape[-1] != kernel.shape[3] * groups or kernel.shape[4] % groups:
        raise ValueError(
            f"clips of shape {x.shape} do not fit a kernel {kernel.shape} in {groups} group(s): "
            f"{kernel.shape[3] * groups} input channels are expected, and features in whole groups"
        )
    for axis, size, k, p in zip("THW", x.shape[1:4], kernel.shape[:3], padding, strict=True):
        if size + 2 * p < k:
            raise ValueError(
                f"clips of shape {x.shape} are too small: axis {axis} has {size}, "
                f"the kernel needs at least {k - 2 * p}; give longer or larger clips"
            )
