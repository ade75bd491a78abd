"""Resizing without antialiasing, pixel for pixel."""

import math

import numpy as np
import pytest

from skd_jax.data.decode import decode
from skd_jax.data.resize import bilinear
from tests.data.test_decode import quadrants, set_display_matrix, write_video


def by_hand(image, height, width):
    """The definition, one pixel after the other, in float64."""
    tall, wide = image.shape[:2]
    out = np.zeros((height, width, 3))
    for y in range(height):
        v = max((y + 0.5) * tall / height - 0.5, 0)
        for x in range(width):
            u = max((x + 0.5) * wide / width - 0.5, 0)
            for j, b in ((math.floor(v), 1 - v % 1), (math.floor(v) + 1, v % 1)):
                for i, a in ((math.floor(u), 1 - u % 1), (math.floor(u) + 1, u % 1)):
                    out[y, x] += a * b * image[min(j, tall - 1), min(i, wide - 1)]
    return out


@pytest.mark.parametrize(
    ("size", "out"), [((24, 32), (13, 17)), ((9, 50), (20, 7)), ((1, 1), (3, 2)), ((6, 6), (6, 6))]
)
def test_each_pixel_is_a_mean_of_its_four_neighbours(size, out):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    got = bilinear(image, *out)
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got, by_hand(image, *out), atol=0.501)


def test_what_lies_between_the_taps_is_not_seen():
    image = np.zeros((80, 80, 3), np.uint8)
    image[:, 5::10] = 255  # the taps of output pixel k are at 10 k + 4 and 10 k + 5
    np.testing.assert_array_equal(bilinear(image, 8, 8), np.full((8, 8, 3), 128))
    image = np.roll(image, 2, axis=1)
    np.testing.assert_array_equal(bilinear(image, 8, 8), np.zeros((8, 8, 3)))


@pytest.mark.parametrize("matrix", [None, (0, 1, -1, 0), (-1, 0, 0, 1)])
def test_decoding_to_a_fixed_size_whatever_the_aspect(tmp_path, matrix):
    path = write_video(tmp_path / "v.mp4", [quadrants()] * 2)
    if matrix:
        set_display_matrix(path, *matrix)
    shown = decode(path, short_side=None, max_fps=None).frames[0]
    got = decode(path, short_side=16, width=23, antialias=False, max_fps=None).frames
    assert got.shape == (2, 16, 23, 3)
    np.testing.assert_allclose(got[0], by_hand(shown, 16, 23), atol=0.51)
    smooth = decode(path, short_side=16, width=23, max_fps=None).frames
    assert smooth.shape == got.shape
    assert np.abs(smooth.astype(int) - got).mean() < 8


def test_the_long_side_is_cut_as_pytorchs_libraries_do(tmp_path):
    """int(size * long / short): 12 * 100 / 30 = 40, and 13 * 100 / 30 = 43.3; 17 gives 56.7."""
    path = write_video(tmp_path / "v.mp4", [np.zeros((30, 100, 3), np.uint8)])
    for short, long in ((12, 40), (13, 43), (17, 56)):
        frames = decode(path, short_side=short, antialias=False, max_fps=None).frames
        assert frames.shape[1:3] == (short, long)
