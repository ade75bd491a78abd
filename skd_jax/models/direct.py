"""3-D convolution by oneDNN, with its gradients: towards the clips by oneDNN too, towards the kernel as folded.

The gradient towards the clips of a convolution with strides is one convolution without strides for each
phase of the clip's positions (even and odd ones, for stride 2), with those taps of the kernel that meet it.
"""

import itertools

import jax.numpy as jnp
from jax import lax

from skd_jax.models import onednn
from skd_jax.models.folded import with_kernel_gradient


def clip_gradient(x, kernel, strides, padding, gradient):
    """Gradient towards clips of the shape of `x`, from that towards the output; all float32."""
    size, counts = x.shape[1:4], [-(-n // s) for n, s in zip(x.shape[1:4], strides, strict=True)]
    phases = itertools.product(*(range(s) for s in strides))
    parts = [_phase(gradient, kernel, strides, padding, phase, counts) for phase in phases]
    found = jnp.stack(parts).reshape(*strides, *parts[0].shape)
    # (st, sh, sw, B, T, H, W, C): each phase goes beside its block's position.
    found = found.transpose(3, 4, 0, 5, 1, 6, 2, 7).reshape(
        x.shape[0], *(n * s for n, s in zip(counts, strides, strict=True)), x.shape[4]
    )
    return found[:, : size[0], : size[1], : size[2]]


def _phase(gradient, kernel, strides, padding, phase, counts):
    """The part (B, *counts, C) of the gradient at positions s * m + phase."""
    # Position s * m + r is seen through tap k by output m + (r + p - k) / s, for every k that
    # makes this whole.
    around = []
    for axis, (s, p, r, count) in enumerate(zip(strides, padding, phase, counts, strict=True)):
        first, ahead = (r + p) % s, (r + p) // s
        kernel = lax.slice_in_dim(kernel, min(first, kernel.shape[axis]), None, s, axis=axis)
        before = kernel.shape[axis] - 1 - ahead
        after = count + kernel.shape[axis] - 1 - gradient.shape[axis + 1] - before
        around.append((before, after))
    if 0 in kernel.shape[:3]:  # more strides than taps: no output sees these positions
        return jnp.zeros((gradient.shape[0], *counts, kernel.shape[3]), gradient.dtype)
    crop = [(min(low, 0), min(high, 0), 0) for low, high in around]
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *crop, (0, 0, 0)])
    pads = [(max(low, 0), max(high, 0)) for low, high in around]
    mirrored = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return onednn.convolution(gradient, mirrored, (1, 1, 1), pads)


def _forward(x, kernel, strides, padding):
    return onednn.convolution(x, kernel, strides, [(p, p) for p in padding])


# As `folded.folded`, for float32.
direct = with_kernel_gradient(lambda *_: _forward, clip_gradient)
