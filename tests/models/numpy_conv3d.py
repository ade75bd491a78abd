"""3-D convolution and its gradients in NumPy, tap by tap."""

import itertools

import numpy as np


def grouped(x, kernel, strides, padding, groups):
    """As `convolution`, of groups of channels with a kernel (kt, kh, kw, C // groups, features)."""
    parts = [
        convolution(a, k, strides, padding)
        for a, k in zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
    ]

    def gradients(cotangent):
        cotangents = np.split(cotangent, groups, -1)
        found = [towards(c) for (_, towards), c in zip(parts, cotangents, strict=True)]
        return tuple(np.concatenate(part, -1) for part in zip(*found, strict=True))

    return np.concatenate([value for value, _ in parts], -1), gradients


def convolution(x, kernel, strides, padding):
    """Cross-correlation of clips (B, T, H, W, C) with (kt, kh, kw, C, features), and its gradients.

    The gradients' reference where XLA's own is none: see `folded.pad_first`.

    Returns:
      (output, function from a cotangent to the gradients towards clips and kernel), all float64.
    """
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    inner = tuple(slice(p, p + n) for p, n in zip(padding, x.shape[1:4], strict=True))
    padded = np.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])
    steps = [
        (n - k) // s + 1
        for n, k, s in zip(padded.shape[1:4], kernel.shape[:3], strides, strict=True)
    ]
    taps = list(itertools.product(*map(range, kernel.shape[:3])))

    def seen(tap):
        reach = (slice(k, k + (n - 1) * s + 1, s) for k, n, s in zip(tap, steps, strides))
        return (slice(None), *reach)

    def gradients(cotangent):
        towards_clips, towards_kernel = np.zeros_like(padded), np.zeros_like(kernel)
        for tap in taps:
            towards_clips[seen(tap)] += cotangent @ kernel[tap].T
            towards_kernel[tap] = np.einsum("bthwc,bthwf->cf", padded[seen(tap)], cotangent)
        return towards_clips[(slice(None), *inner)], towards_kernel

    return sum(padded[seen(tap)] @ kernel[tap] for tap in taps), gradients
