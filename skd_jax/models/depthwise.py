"""Depthwise 3-D convolution as shifted multiply-adds.

One channel sees one kernel of a few taps: there is no matrix product in it, and XLA on CPU has no
quick code for so many groups. A sum over taps of shifted, scaled copies of the clip reads and
writes whole channel vectors instead. The gradients are written out: those that autodiff makes keep
one shifted copy per tap and add up padded arrays.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

Triple = tuple[int, int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, strides: Triple, padding: Triple) -> jax.Array:
    """Cross-correlates every channel with a kernel of its own; sums in float32 or wider.

    Reverse-mode differentiation alone.

    Args:
      x: clips, shape (B, T, H, W, C).
      kernel: shape (kt, kh, kw, C), of the dtype of `x`.
      strides: steps over (T, H, W).
      padding: zeros added on each of the two sides of (T, H, W).

    Returns:
      Shape (B, T', H', W', C), of the dtype of `x`.
    """
    wide = _wide(x.dtype)
    x, counts = _pad(x.astype(wide), padding), _counts(x.shape, kernel.shape, strides, padding)
    return _correlate(x, kernel.astype(wide), strides, counts).astype(kernel.dtype)


def _forward(x, kernel, strides, padding):
    return depthwise(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, gradient):
    x, kernel = residuals
    wide = _wide(x.dtype)
    gradient = gradient.astype(wide)
    x_gradient = _clip_gradient(gradient, kernel.astype(wide), x.shape, strides, padding)
    kernel_gradient = _kernel_gradient(
        gradient, _pad(x.astype(wide), padding), kernel.shape, strides
    )
    return x_gradient.astype(kernel.dtype), kernel_gradient.astype(kernel.dtype)


depthwise.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _kernel_gradient(gradient, x, kernel_shape, strides):
    """For each tap the sum of what it saw times the gradient there.

    A loop over the taps: written out, XLA would compile one reduction for each of them.
    """
    batch, *counts, channels = gradient.shape
    # Positions of one phase of the strides side by side, since a window at a place known at run
    # time has no strides: axes (phases of T, H, W), (B, T, H, W, C).
    ends = [-n % s for n, s in zip(x.shape[1:4], strides, strict=True)]
    x = jnp.pad(x, [(0, 0), *((0, end) for end in ends), (0, 0)])
    (t, h, w), (st, sh, sw) = x.shape[1:4], strides
    x = x.reshape(batch, t // st, st, h // sh, sh, w // sw, sw, channels)
    x = x.transpose(2, 4, 6, 0, 1, 3, 5, 7)

    def of_tap(tap):
        start = (*(tap % jnp.array(strides)), 0, *(tap // jnp.array(strides)), 0)
        window = lax.dynamic_slice(x, start, (1, 1, 1, batch, *counts, channels))
        return jnp.sum(window[0, 0, 0] * gradient, axis=(0, 1, 2, 3))

    taps = jnp.array(list(_taps(kernel_shape)), jnp.int32)
    return lax.map(of_tap, taps).reshape(kernel_shape)


def _clip_gradient(gradient, kernel, shape, strides, padding):
    """The transposed convolution, one plain correlation for each phase of the strides.

    Along an axis, output j sees padded position q through tap i = q - stride * j. For positions
    q = stride * m + phase these are the taps i = stride * u + phase, at outputs j = m - u.
    """
    # Positions from padding to padding + size belong to the clip: m runs over [first, last).
    first = [p // s for p, s in zip(padding, strides, strict=True)]
    last = [-(-(p + n) // s) for p, n, s in zip(padding, shape[1:4], strides, strict=True)]
    counts = tuple(e - b for b, e in zip(first, last, strict=True))

    def of_phase(phase):
        taps = kernel[tuple(slice(r, None, s) for r, s in zip(phase, strides, strict=True))]
        if 0 in taps.shape:
            return jnp.zeros((shape[0], *counts, shape[4]), gradient.dtype)
        edges = [
            (k - 1 - b, e - n, 0)
            for k, b, e, n in zip(taps.shape[:3], first, last, gradient.shape[1:4], strict=True)
        ]
        zero = jnp.zeros((), gradient.dtype)
        shifted = lax.pad(gradient, zero, [(0, 0, 0), *edges, (0, 0, 0)])
        return _correlate(shifted, jnp.flip(taps, (0, 1, 2)), (1, 1, 1), counts)

    def interleaved(phase):
        """Fills the axes after those that `phase` already fixes."""
        axis = len(phase)
        if axis == 3:
            return of_phase(phase)
        parts = [interleaved((*phase, r)) for r in range(strides[axis])]
        whole = jnp.stack(parts, axis=axis + 2)
        return whole.reshape(*whole.shape[: axis + 1], -1, *whole.shape[axis + 3 :])

    start = [p - b * s for p, b, s in zip(padding, first, strides, strict=True)]
    stop = [b + n for b, n in zip(start, shape[1:4], strict=True)]
    return lax.slice(interleaved(()), (0, *start, 0), (shape[0], *stop, shape[4]))


# Jitted to be traced once for all blocks of one shape.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _correlate(x, kernel, strides, counts):
    """Sum over taps of window times tap, for `counts` positions of the kernel."""
    return functools.reduce(
        jnp.add, (_window(x, tap, strides, counts) * kernel[tap] for tap in _taps(kernel.shape))
    )


def _window(x, tap, strides, counts):
    """What one tap sees: (B, *counts, C)."""
    stop = [t + (n - 1) * s + 1 for t, n, s in zip(tap, counts, strides, strict=True)]
    return lax.slice(x, (0, *tap, 0), (x.shape[0], *stop, x.shape[4]), (1, *strides, 1))


def _taps(kernel_shape):
    return itertools.product(*(range(k) for k in kernel_shape[:3]))


def _counts(shape, kernel_shape, strides, padding):
    return tuple(
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(shape[1:4], kernel_shape[:3], strides, padding, strict=True)
    )


def _pad(x, padding):
    return jnp.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])


def _wide(dtype):
    """The dtype to sum in."""
    return jnp.promote_types(dtype, jnp.float32)
