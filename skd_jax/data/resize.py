"""Resizing of frames as PyTorch does it by default: bilinear, without antialiasing."""

import functools

import numpy as np


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel from the four nearest ones, however much the image shrinks.

    torchvision's `resize(..., antialias=False)`, which its video presets use: half-pixel centres,
    float32, rounded to the nearest grey level, halves to even.

    Args:
      image: uint8 (H, W, 3).
      height: of the result.
      width: of the result.

    Returns:
      uint8 (height, width, 3).
    """
    if image.shape[:2] == (height, width):
        return image
    top, bottom, down = _taps(image.shape[0], height)
    left, right, across = _taps(image.shape[1], width)
    down, across = down[:, None, None], across[:, None]

    def row(y: np.ndarray) -> np.ndarray:
        lines = image[y]
        return (1 - across) * lines[:, left] + across * lines[:, right]

    return np.rint((1 - down) * row(top) + down * row(bottom)).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `out` positions the pixels before and after, and the weight of the latter."""
    scale = np.float32(size) / np.float32(out)
    centre = (np.arange(out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centre = np.maximum(centre, 0)
    first = np.minimum(centre.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), centre - first.astype(np.float32)
