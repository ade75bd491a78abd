"""3-D convolution out of 2-D convolutions and matrix products, for backends where these are quicker.

Forward and towards the clips there are three ways, each one 2-D convolution over B * T images:

  side_by_side  the frames that the temporal taps see as further channels: kt * C in, F out
  spread        one convolution to kt * F features of every frame; each tap's share is added to the
                output it belongs to
  phased        as side_by_side, on clips whose H and W strides have been made channels: its gradient is
                a convolution without holes

Towards the kernel none of them is quick: XLA turns the gradient of a 2-D convolution into one with
kernels as large as the images. Written out it is a matrix product of what the spatial taps see of the clip,
side by side, and the gradient, both as (positions, channels); the temporal taps lie side by side in
the channels of one of the two. It goes over the clip a few frames at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from skd_jax.models import choices, onednn
from skd_jax.models.depthwise import Triple

# Positions of the clip in one product towards the kernel: no more than what they see fills these bytes, so
# that it stays in the cache, but between these bounds.
_BYTES, _POSITIONS = 8 * 2**20, (1600, 3200)


def with_kernel_gradient(forward, clip_gradient):
    """A convolution whose gradient towards the kernel is `kernel_gradient`.

    Args:
      forward: (kernel shape, strides) -> the form that computes it.
      clip_gradient: (clips, kernel, strides, padding, gradient) -> gradient towards the clips.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def convolve(x, kernel, strides, padding):
        return forward(kernel.shape, strides)(x, kernel, strides, padding)

    def keep(x, kernel, strides, padding):
        return convolve(x, kernel, strides, padding), (x, kernel)

    def backward(strides, padding, residuals, gradient):
        x, kernel = residuals
        towards_clips = clip_gradient(x, kernel, strides, padding, gradient)
        return towards_clips, kernel_gradient(x, gradient, kernel.shape, strides, padding)

    convolve.defvjp(keep, backward)
    return convolve


def forward_form(kernel_shape: tuple[int, ...], strides: Triple):
    """The form of `choices.FORWARD_FORMS`."""
    convolution = choices.Convolution(kernel_shape, strides)
    return FORMS[choices.first_that_holds(choices.FORWARD_FORMS, convolution)]


def clip_gradient_form(kernel_shape: tuple[int, ...], strides: Triple):
    """The form of `choices.CLIP_GRADIENT_FORMS`: the gradient of one form is of the other's kind."""
    convolution = choices.Convolution(kernel_shape, strides)
    return FORMS[choices.first_that_holds(choices.CLIP_GRADIENT_FORMS, convolution)]


def gradient_of(choose):
    """The gradient towards the clips, of the form that `choose(kernel shape, strides)` names."""

    def clip_gradient(x, kernel, strides, padding, gradient):
        form = choose(kernel.shape, strides)
        _, pull_back = jax.vjp(lambda x: form(x, kernel, strides, padding), x)
        return pull_back(gradient)[0]

    return clip_gradient


def side_by_side(x, kernel, strides, padding, groups: int = 1):
    """The form "side_by_side", the only one for several groups of channels."""
    taken = temporal_taps(x, kernel.shape[0], strides[0], padding[0])
    batch, steps, height, width, channels = taken[0].shape
    # Each group must find its channels of all taps side by side.
    images = jnp.concatenate(
        [t.reshape(batch * steps, height, width, groups, -1) for t in taken], axis=-1
    ).reshape(batch * steps, height, width, len(taken) * channels)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[4])
    y = conv2d(images, kernel, strides[1:], padding[1:], groups)
    return y.reshape(batch, steps, *y.shape[1:])


def spread(x, kernel, strides, padding):
    """The form "spread"."""
    taps, *_, features = kernel.shape
    batch, frames, *size = x.shape
    wide = jnp.moveaxis(kernel, 0, 3).reshape(*kernel.shape[1:4], taps * features)
    y = conv2d(x.reshape(batch * frames, *size), wide, strides[1:], padding[1:])
    y = y.reshape(batch, frames, *y.shape[1:])
    parts = [y[..., i * features : (i + 1) * features] for i in range(taps)]
    taken = [temporal_taps(part, taps, strides[0], padding[0])[i] for i, part in enumerate(parts)]
    return sum(taken[1:], taken[0])


def over_time(x, kernel, strides, padding):
    """A (kt, 1, 1) convolution as a (kt, 1) 2-D convolution over (T, H * W)."""
    batch, steps, height, width, channels = x.shape
    y = conv2d(
        x.reshape(batch, steps, height * width, channels),
        kernel.reshape(kernel.shape[0], 1, *kernel.shape[3:]),
        (strides[0], 1),
        (padding[0], 0),
    )
    return y.reshape(batch, y.shape[1], height, width, y.shape[-1])


def phased(x, kernel, strides, padding):
    """The form "phased"."""
    blocks, to_blocks = blocks_of(x, strides[1:], padding[1:], kernel.shape[1:3])
    return side_by_side(blocks, to_blocks(kernel), (strides[0], 1, 1), (padding[0], 0, 0))


def blocks_of(x, strides, padding, window):
    """A convolution strided over H and W as one of stride 1 and no padding.

    Every block of sh * sw positions becomes one with sh * sw * C channels; the kernel gets taps of
    zeros up to whole blocks.

    Args:
      x: clips (B, T, H, W, C).
      strides, padding, window: over (H, W).

    Returns:
      Clips (B, T, H / sh, W / sw, sh * sw * C), and the linear function that takes a kernel (kt, kh, kw, C,
      features) to (kt, ., ., sh * sw * C, features).
    """
    batch, frames, *_, channels = x.shape
    pads, taps_missing, counts = [], [], []
    for n, k, s, p in zip(x.shape[2:4], window, strides, padding, strict=True):
        blocks = -(-k // s)
        whole = ((n + 2 * p - k) // s + blocks) * s
        pads.append((p, whole - n - p, 0))
        taps_missing.append((0, blocks * s - k))
        counts.append((whole // s, s, blocks))
    (height, sh, kh), (width, sw, kw) = counts
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads, (0, 0, 0)])
    x = x.reshape(batch, frames, height, sh, width, sw, channels)
    x = x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, frames, height, width, -1)

    def to_blocks(kernel):
        taps, *_, features = kernel.shape
        kernel = jnp.pad(kernel, [(0, 0), *taps_missing, (0, 0), (0, 0)])
        kernel = kernel.reshape(taps, kh, sh, kw, sw, channels, features)
        return kernel.transpose(0, 1, 3, 2, 4, 5, 6).reshape(taps, kh, kw, -1, features)

    return x, to_blocks


def kernel_gradient(
    x: jax.Array,
    gradient: jax.Array,
    kernel_shape: tuple[int, ...],
    strides: Triple,
    padding: Triple,
) -> jax.Array:
    """Gradient of a convolution towards its kernel, as matrix products.

    Args:
      x: clips, shape (B, T, H, W, C).
      gradient: towards the output, shape (B, T', H', W', features).
      kernel_shape: (kt, kh, kw, C, features).
      strides, padding: of the convolution.

    Returns:
      Shape `kernel_shape`, of the dtype of `x`; sums in float32 or wider.
    """
    taps, kh, kw, channels, features = kernel_shape
    if strides[1:] != (1, 1) and channels < choices.FEW:
        # Rows of a few channels are slow to gather: blocks of positions have more.
        blocks, to_blocks = blocks_of(x, strides[1:], padding[1:], (kh, kw))
        kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
        found = kernel_gradient(
            blocks,
            gradient,
            jax.eval_shape(to_blocks, kernel).shape,
            (strides[0], 1, 1),
            (padding[0], 0, 0),
        )
        return jax.linear_transpose(to_blocks, kernel)(found)[0]
    batch, frames = x.shape[:2]
    steps, *size = gradient.shape[1:4]
    pad = padding[0]
    x = jnp.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding[1:]), (0, 0)])
    # On the gradient, what the spatial taps see is laid out once for all temporal taps.
    taps_on_clip = strides[0] > 1 or taps == 1 or (kh * kw == 1 and channels < features)
    if taps_on_clip:
        # Output s sees frame s * strides[0] + i of the padded clip through tap i.
        wide, narrow = _pad_frames(x, pad, pad), gradient
    else:
        # Frame f of the clip meets output f - i + pad through tap i: the last tap comes first.
        wide, narrow = _pad_frames(gradient, taps - 1 - pad, frames - steps + pad), x
    count = narrow.shape[1]
    columns = kh * kw * channels * (taps if taps_on_clip else 1)
    least, most = _POSITIONS
    limit = min(most, max(least, _BYTES // (x.dtype.itemsize * columns)))
    positions = (batch, count, *size)
    if math.prod(positions) > limit:
        # Piece by piece: what a product reads is then still in the cache.
        run = next(
            n
            for n in range(count, 0, -1)
            if not count % n and (n == 1 or n * math.prod(size) <= limit)
        )
        positions = (1, run, *size)
    if taps_on_clip:
        clip = _Windows(wide, positions, strides, (taps, kh, kw))
        other = _Windows(narrow, positions, (1, 1, 1), (1, 1, 1))
    else:
        clip = _Windows(narrow, positions, (1, *strides[1:]), (1, kh, kw))
        other = _Windows(wide, positions, (1, 1, 1), (taps, 1, 1))
    pieces = np.indices((batch // positions[0], count // positions[1]), np.int32).reshape(2, -1)

    def product(starts):
        return _product(clip.rows(starts[0]), other.rows(starts[1]))

    starts = clip.start(*pieces), other.start(*pieces)
    if pieces.shape[1] == 1:
        total = product([at[0] for at in starts])
    else:
        shape = jax.eval_shape(product, [at[0] for at in starts])
        total, _ = lax.scan(
            lambda total, starts: (total + product(starts), None),
            jnp.zeros(shape.shape, shape.dtype),
            starts,
        )
    if not taps_on_clip:
        total = total.reshape(kh, kw, channels, taps, features)[..., ::-1, :]
        total = total.transpose(3, 0, 1, 2, 4)
    return total.reshape(kernel_shape).astype(x.dtype)


class _Windows:
    """What a window sees from each of its positions on clips, for one piece of the positions at a time.

    Rows of channels are gathered, in one copy: slices side by side would be copied twice.

    Args:
      clips: shape (B, T, H, W, C).
      positions: of a piece, (clips, frames, rows, columns).
      strides, window: over (T, H, W).
    """

    def __init__(self, clips, positions, strides, window):
        *_, height, width, channels = clips.shape
        to_clip, to_frame = math.prod(clips.shape[1:4]), height * width
        steps = (to_clip, strides[0] * to_frame, strides[1] * width, strides[2])
        self._steps, self._all = steps[:2], clips.reshape(-1, channels)
        self._positions = positions
        axes = np.indices((*positions, *window), np.int32, sparse=True)
        taken = sum(a * n for a, n in zip(axes, (*steps, to_frame, width, 1), strict=True))
        self._taken = taken.reshape(math.prod(positions), -1, 1)

    def start(self, clips, frames):
        """The first row of piece (clips, frames), for `rows`."""
        (by_clip, by_frame), (many, run) = self._steps, self._positions[:2]
        return clips * np.int32(many * by_clip) + frames * np.int32(run * by_frame)

    def rows(self, start):
        """Shape (positions of a piece, taps of the window * C)."""
        numbers = lax.GatherDimensionNumbers(
            offset_dims=(2,), collapsed_slice_dims=(0,), start_index_map=(0,)
        )
        found = lax.gather(
            self._all,
            self._taken + start,
            numbers,
            (1, self._all.shape[1]),
            mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        )
        return found.reshape(found.shape[0], -1)


def _product(clip, gradient):
    """(positions, A) and (positions, B) to (A, B), summed over all positions; float32 or wider."""
    if clip.dtype == jnp.float32 and onednn.available():
        return onednn.transposed_product(clip, gradient)
    dtype = jnp.promote_types(clip.dtype, jnp.float32)
    return lax.dot_general(clip, gradient, (((0,), (0,)), ((), ())), preferred_element_type=dtype)


def _pad_frames(clips, before: int, after: int):
    """Zeros before and after in time; fewer frames where negative."""
    zero = jnp.zeros((), clips.dtype)
    return lax.pad(clips, zero, [(0, 0, 0), (before, after, 0)] + [(0, 0, 0)] * 3)


def temporal_taps(x: jax.Array, taps: int, stride: int, padding: int) -> list[jax.Array]:
    """For each temporal tap the frames (B, T', H, W, C) that it sees."""
    x = jnp.pad(x, [(0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)])
    steps = (x.shape[1] - taps) // stride + 1
    return [
        lax.slice_in_dim(x, tap, tap + (steps - 1) * stride + 1, stride, axis=1)
        for tap in range(taps)
    ]


def pad_first(x, kernel_shape, strides, padding):
    """Clips or images (N, ..., C) with some of the padding of a convolution over ..., and the rest.

    XLA on CPU takes the gradient towards the clips of a window of 2 with stride 2 and padding 1 for a grouped
    convolution written in another way, and ends the process: "Check failed ... Window dimensions do
    not match RHS shape" (SwapConvOperands in its algebraic_simplifier.cc, seen with jaxlib 0.10.2).
    What tells the two apart there is the padding.
    """
    ahead = [
        p if (k, s, p) == (2, 2, 1) else 0
        for k, s, p in zip(kernel_shape, strides, padding, strict=False)
    ]
    if any(ahead):
        x = jnp.pad(x, [(0, 0), *((p, p) for p in ahead), (0, 0)])
    return x, tuple(p - a for p, a in zip(padding, ahead, strict=True))


def conv2d(x, kernel, strides, padding, groups: int = 1):
    """2-D convolution of images (N, H, W, C) with a kernel (kh, kw, C // groups, features)."""
    x, padding = pad_first(x, kernel.shape, strides, padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


FORMS = {"side_by_side": side_by_side, "spread": spread, "phased": phased}

# Both take clips (B, T, H, W, C), a kernel (kt, kh, kw, C, features) of the same dtype, strides and padding over
# (T, H, W), and give (B, T', H', W', features). Reverse-mode differentiation alone.
folded = with_kernel_gradient(forward_form, gradient_of(clip_gradient_form))
temporal = with_kernel_gradient(lambda *_: over_time, gradient_of(lambda *_: over_time))
