"""3-D convolution out of 2-D convolutions and matrix products, for backends where these are quicker.

Forward and towards the clips there are three ways, each one 2-D convolution over B * T images:

  side_by_side  the frames that the temporal taps see as further channels: kt * C in, F out
  spread        one convolution to kt * F features of every frame; each tap's share is added to the
                output it belongs to
  phased        as side_by_side, on clips whose H and W strides have been made channels: its gradient is
                a convolution without holes

Towards the kernel none of them is quick: XLA turns the gradient of a 2-D convolution into one with
kernels as large as the images. Written out it is, for every spatial tap, a matrix product of the
clip seen through that tap and the gradient, both as (positions, channels); the temporal taps lie
side by side in the channels of one of the two.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from skd_jax.models.depthwise import Triple

# Which form for which convolution: benchmarks/convolutions.py measures them.
_WIDE = 128  # channels from which on side by side beats apart


def with_kernel_gradient(forward, towards_clips):
    """A convolution whose gradient towards the kernel is `kernel_gradient`.

    Args:
      forward: (kernel shape, strides) -> the form that computes it.
      towards_clips: likewise, the form whose gradient is taken towards the clips.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def convolve(x, kernel, strides, padding):
        return forward(kernel.shape, strides)(x, kernel, strides, padding)

    def keep(x, kernel, strides, padding):
        return convolve(x, kernel, strides, padding), (x, kernel)

    def backward(strides, padding, residuals, gradient):
        x, kernel = residuals
        form = towards_clips(kernel.shape, strides)
        _, pull_back = jax.vjp(lambda x: form(x, kernel, strides, padding), x)
        (x_gradient,) = pull_back(gradient)
        return x_gradient, kernel_gradient(x, gradient, kernel.shape, strides, padding)

    convolve.defvjp(keep, backward)
    return convolve


def forward_form(kernel_shape: tuple[int, ...], strides: Triple):
    """The quickest form to compute a convolution in."""
    few_channels = kernel_shape[3] < 16
    if kernel_shape[0] == 1 or few_channels or strides[0] > 1 or kernel_shape[3] >= _WIDE:
        return side_by_side
    return spread


def clip_gradient_form(kernel_shape: tuple[int, ...], strides: Triple):
    """The form with the quickest gradient towards the clips."""
    # The gradient of one form is of the other's kind.
    return phased if strides[1:] != (1, 1) else side_by_side


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
    blocks, block_kernel = blocks_of(x, kernel, strides[1:], padding[1:])
    return side_by_side(blocks, block_kernel, (strides[0], 1, 1), (padding[0], 0, 0))


def blocks_of(x, kernel, strides, padding):
    """A convolution strided over H and W as one of stride 1 and no padding.

    Every block of sh * sw positions becomes one with sh * sw * C channels; the kernel gets taps of
    zeros up to whole blocks.

    Returns:
      Clips (B, T, H / sh, W / sw, sh * sw * C) and kernel (kt, ., ., sh * sw * C, features).
    """
    batch, frames, *_, channels = x.shape
    taps, *sizes, _, features = kernel.shape
    pads, taps_missing, counts = [], [], []
    for n, k, s, p in zip(x.shape[2:4], sizes, strides, padding, strict=True):
        blocks = -(-k // s)
        whole = ((n + 2 * p - k) // s + blocks) * s
        pads.append((p, whole - n - p, 0))
        taps_missing.append((0, blocks * s - k))
        counts.append((whole // s, s, blocks))
    (height, sh, kh), (width, sw, kw) = counts
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *pads, (0, 0, 0)])
    x = x.reshape(batch, frames, height, sh, width, sw, channels)
    x = x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, frames, height, width, -1)
    kernel = jnp.pad(kernel, [(0, 0), *taps_missing, (0, 0), (0, 0)])
    kernel = kernel.reshape(taps, kh, sh, kw, sw, channels, features)
    kernel = kernel.transpose(0, 1, 3, 2, 4, 5, 6).reshape(taps, kh, kw, -1, features)
    return x, kernel


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
    batch, frames = x.shape[:2]
    taps_on_clip = strides[0] > 1 or channels < features or taps == 1
    if taps_on_clip:
        x = jnp.concatenate(temporal_taps(x, taps, strides[0], padding[0]), axis=-1)
    else:
        # Frame f of the clip meets output f - i + padding through tap i.
        zero, steps = jnp.zeros((), gradient.dtype), gradient.shape[1]
        gradient = jnp.concatenate(
            [
                lax.pad(
                    gradient,
                    zero,
                    [(0, 0, 0), (i - padding[0], frames - steps - i + padding[0], 0)]
                    + [(0, 0, 0)] * 3,
                )
                for i in range(taps)
            ],
            axis=-1,
        )
    x = jnp.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding[1:]), (0, 0)])
    _, steps, height, width, columns = gradient.shape
    rows = gradient.reshape(-1, columns)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def product(i, j):
        stop = (i + (height - 1) * strides[1] + 1, j + (width - 1) * strides[2] + 1)
        seen = lax.slice(
            x, (0, 0, i, j, 0), (batch, steps, *stop, x.shape[4]), (1, 1, *strides[1:], 1)
        ).reshape(-1, x.shape[4])
        return lax.dot_general(seen, rows, (((0,), (0,)), ((), ())), preferred_element_type=wide)

    products = jnp.stack([product(i, j) for i in range(kh) for j in range(kw)])
    if taps_on_clip:
        products = products.reshape(kh, kw, taps, channels, features).transpose(2, 0, 1, 3, 4)
    else:
        products = products.reshape(kh, kw, channels, taps, features).transpose(3, 0, 1, 2, 4)
    return products.astype(x.dtype)


def temporal_taps(x: jax.Array, taps: int, stride: int, padding: int) -> list[jax.Array]:
    """For each temporal tap the frames (B, T', H, W, C) that it sees."""
    x = jnp.pad(x, [(0, 0), (padding, padding), (0, 0), (0, 0), (0, 0)])
    steps = (x.shape[1] - taps) // stride + 1
    return [
        lax.slice_in_dim(x, tap, tap + (steps - 1) * stride + 1, stride, axis=1)
        for tap in range(taps)
    ]


def conv2d(x, kernel, strides, padding, groups: int = 1):
    """2-D convolution of images (N, H, W, C) with a kernel (kh, kw, C // groups, features)."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# Both take clips (B, T, H, W, C), a kernel (kt, kh, kw, C, features) of the same dtype, strides and padding over
# (T, H, W), and give (B, T', H', W', features). Reverse-mode differentiation alone.
folded = with_kernel_gradient(forward_form, clip_gradient_form)
temporal = with_kernel_gradient(lambda *_: over_time, lambda *_: over_time)
