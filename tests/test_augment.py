"""Device augmentation against jax.image, SciPy and invariants of colour."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from skd_jax import augment
from skd_jax.augment import AugmentSettings
from tests.fakes import (
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
)

PLAIN = AugmentSettings(crop=8, mean=(0, 0, 0), std=(1 / 255,) * 3)  # leaves pixels in 0..255
COLOURS = dataclasses.replace(
    PLAIN, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_probability=1.0
)
train_clips = jax.jit(augment.train_clips, static_argnums=4)
eval_clips = jax.jit(augment.eval_clips, static_argnums=2)
colour_map = jax.jit(augment.colour_map, static_argnums=2)


def train(batch, settings, **changed):
    batch = batch | changed
    return np.asarray(
        train_clips(batch["clips"], batch["size"], batch["flip"], batch["key"], settings)
    )


def full(batch, side):
    return batch | {"size": np.full_like(batch["size"], side)}


@pytest.mark.parametrize("out", [7, 16])
@pytest.mark.parametrize("size", [1, 5, 7, 16, 19, 20])
def test_resizing_as_jax_image_does(size, out):
    """Enlarging and shrinking (antialiased); what lies outside the window counts for nothing."""
    row = np.random.default_rng(0).uniform(0, 255, 20).astype(np.float32)
    matrix = jax.jit(augment.resize_matrix, static_argnums=(1, 2))(jnp.int32(size), 20, out)
    np.testing.assert_allclose(matrix.sum(1), np.ones(out), rtol=1e-5)
    want = jax.image.resize(row[:size], (out,), "linear", antialias=True)
    np.testing.assert_allclose(matrix @ row, want, rtol=1e-4, atol=1e-3)


def test_a_window_of_the_crops_size_is_copied():
    np.testing.assert_allclose(augment.resize_matrix(jnp.int32(8), 12, 8), np.eye(8, 12), atol=1e-6)


def test_evaluation_clips_are_resized_windows_normalised():
    settings = AugmentSettings(crop=8)
    batch = pixel_batch(videos=2, canvas=12)
    got = np.asarray(eval_clips(batch["clips"], batch["size"], settings))
    assert got.shape == (2, 2, 2, 8, 8, 3) and got.dtype == np.float32
    mean = np.array([0.43216, 0.394666, 0.37645])
    std = np.array([0.22803, 0.22145, 0.216989])
    for video, view in np.ndindex(2, 2):
        height, width = batch["size"][video, view]
        window = batch["clips"][video, view, :, :height, :width].astype(np.float32)
        want = jax.image.resize(window, (2, 8, 8, 3), "linear", antialias=True)
        want = (np.asarray(want) / 255 - mean) / std
        np.testing.assert_allclose(got[video, view], want, rtol=1e-3, atol=1e-3)


def test_training_clips_without_augmentation_are_evaluation_clips():
    batch = pixel_batch(videos=2)
    want = eval_clips(batch["clips"], batch["size"], PLAIN)
    got = train(batch, PLAIN, flip=np.zeros((2, 2), bool))
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("settings", [PLAIN, dataclasses.replace(COLOURS, blur_probability=1.0)])
def test_flip_mirrors_left_and_right(settings):
    batch = pixel_batch(videos=3)
    flip = np.array([[True, False], [False, True], [True, True]])
    straight = train(batch, settings, flip=np.zeros((3, 2), bool))
    got = train(batch, settings, flip=flip)
    want = np.where(flip[..., None, None, None, None], straight[..., ::-1, :], straight)
    np.testing.assert_allclose(got, want, atol=1e-2)
    assert abs(straight[flip] - got[flip]).max() > 1


def test_blur_is_a_gaussian():
    matrix = augment.blur_matrix(1.5, 21)
    np.testing.assert_allclose(matrix.sum(1), np.ones(21), rtol=1e-5)
    impulse = np.eye(21)[10]
    want = ndimage.gaussian_filter1d(impulse, 1.5, mode="constant", truncate=6)
    np.testing.assert_allclose(matrix @ impulse, want, atol=1e-4)
    np.testing.assert_array_equal(augment.blur_matrix(0.0, 5), np.eye(5))


def test_blur_is_drawn_from_its_range():
    batch = full(pixel_batch(videos=4), 6)
    plain = dataclasses.replace(PLAIN, crop=6)
    narrow = dataclasses.replace(plain, blur_probability=1.0, blur_sigma=(1e-3, 2e-3))
    np.testing.assert_allclose(train(batch, narrow), train(batch, plain), atol=1e-2)
    wide = dataclasses.replace(plain, blur_probability=1.0, blur_sigma=(100.0, 101.0))
    blurred = train(batch, wide)
    # So wide a blur leaves the mean of each frame.
    want = np.broadcast_to(blurred.mean((3, 4), keepdims=True), blurred.shape)
    np.testing.assert_allclose(blurred, want, atol=0.1)
    np.testing.assert_allclose(
        blurred.mean((3, 4)), batch["clips"].mean((3, 4), dtype=np.float64), atol=0.1
    )


def luma(rgb):
    return np.asarray(rgb, np.float64) @ [0.299, 0.587, 0.114]


KEYS = jax.random.split(jax.random.key(0), 8)
MEAN = np.array([120.0, 80.0, 40.0], np.float32)


@pytest.mark.parametrize(
    "settings", [dataclasses.replace(PLAIN, jitter_probability=1.0), COLOURS], ids=["0", "p=0"]
)
def test_no_strength_or_no_probability_is_the_identity(settings):
    if settings.jitters:
        settings = dataclasses.replace(settings, jitter_probability=0.0)
    for key in KEYS:
        matrix, offset = colour_map(key, MEAN, settings)
        np.testing.assert_allclose(matrix, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(offset, np.zeros(3), atol=1e-3)


def only(**strength):
    return dataclasses.replace(PLAIN, jitter_probability=1.0, **strength)


def test_brightness_scales():
    factors = []
    for key in KEYS:
        matrix, offset = colour_map(key, MEAN, only(brightness=0.4))
        np.testing.assert_allclose(matrix, np.asarray(matrix)[0, 0] * np.eye(3), atol=1e-5)
        np.testing.assert_allclose(offset, np.zeros(3), atol=1e-4)
        factors.append(float(matrix[0, 0]))
    assert all(0.6 <= factor <= 1.4 for factor in factors) and len(set(factors)) == 8


def test_contrast_blends_with_the_mean_luma():
    for key in KEYS:
        matrix, offset = colour_map(key, MEAN, only(contrast=0.5))
        factor = float(matrix[0, 0])
        assert 0.5 <= factor <= 1.5
        np.testing.assert_allclose(matrix, factor * np.eye(3), atol=1e-5)
        np.testing.assert_allclose(
            offset, np.full(3, (1 - factor) * luma(MEAN)), rtol=1e-3, atol=1e-3
        )


def test_saturation_blends_each_pixel_with_its_luma():
    for key in KEYS:
        matrix, offset = colour_map(key, MEAN, only(saturation=0.5))
        got = np.asarray(matrix) @ MEAN
        factor = (got[0] - luma(MEAN)) / (MEAN[0] - luma(MEAN))
        assert 0.5 <= factor <= 1.5
        np.testing.assert_allclose(got, factor * MEAN + (1 - factor) * luma(MEAN), rtol=1e-4)
        np.testing.assert_allclose(offset, np.zeros(3), atol=1e-4)


def test_hue_turns_the_chroma_by_the_angle():
    yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    before = yiq @ MEAN
    angles = []
    for key in KEYS:
        matrix, _ = colour_map(key, MEAN, only(hue=0.1))
        after = yiq @ np.asarray(matrix, np.float64) @ MEAN
        np.testing.assert_allclose(after[0], before[0], rtol=1e-4)
        np.testing.assert_allclose(np.hypot(*after[1:]), np.hypot(*before[1:]), rtol=1e-3)
        turn = np.angle(complex(*after[1:]) / complex(*before[1:])) / (2 * np.pi)
        assert abs(turn) <= 0.1
        angles.append(turn)
        np.testing.assert_allclose(np.asarray(matrix) @ np.ones(3), np.ones(3), atol=1e-4)
    assert max(angles) > 0 > min(angles)


def test_all_together_leave_grey_grey_and_scale_the_mean_luma_by_the_brightness():
    for key in KEYS:
        matrix, offset = colour_map(key, MEAN, COLOURS)
        brightness, _ = colour_map(key, MEAN, only(brightness=0.4))
        mean = np.asarray(matrix) @ MEAN + np.asarray(offset)
        np.testing.assert_allclose(luma(mean), float(brightness[0, 0]) * luma(MEAN), rtol=1e-3)
        grey = np.asarray(matrix) @ np.full(3, 50.0) + np.asarray(offset)
        np.testing.assert_allclose(grey, np.full(3, grey[0]), rtol=1e-3)


def test_grey_is_the_luma_in_all_channels():
    settings = dataclasses.replace(PLAIN, grey_probability=1.0)
    batch = pixel_batch(videos=2)
    got, want = train(batch, settings), luma(train(batch, PLAIN))
    np.testing.assert_allclose(got, np.stack([want] * 3, -1), rtol=1e-3, atol=0.05)


def test_probabilities_are_shares_of_the_clips():
    keys = jax.random.split(jax.random.key(5), 2000)
    settings = dataclasses.replace(COLOURS, grey_probability=0.2, jitter_probability=0.7)
    draw = functools.partial(augment.colour_map, settings=settings)
    matrices, _ = jax.jit(jax.vmap(draw, (0, None)))(keys, MEAN)
    grey = np.isclose(matrices[:, 0], matrices[:, 1], atol=1e-6).all(-1)
    same = np.isclose(matrices, np.eye(3), atol=1e-6).all((-1, -2))
    np.testing.assert_allclose(grey.mean(), 0.2, atol=0.03)
    np.testing.assert_allclose(same.mean(), 0.3 * 0.8, atol=0.03)


def test_one_colour_map_for_all_frames_of_a_view():
    rng = np.random.default_rng(3)
    batch = full(pixel_batch(videos=3), 6) | {
        "clips": rng.integers(100, 140, (3, 2, 2, 6, 6, 3)).astype(np.uint8)  # nothing clips
    }
    settings = dataclasses.replace(COLOURS, crop=6)
    got = train(batch, settings, flip=np.zeros((3, 2), bool))
    maps = []
    for video, view in np.ndindex(3, 2):
        pixels = batch["clips"][video, view].reshape(-1, 3).astype(np.float64)
        design = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
        fit, *_ = np.linalg.lstsq(design, got[video, view].reshape(-1, 3), rcond=None)
        np.testing.assert_allclose(design @ fit, got[video, view].reshape(-1, 3), atol=0.05)
        maps.append(fit)
    distances = [abs(a - b).max() for i, a in enumerate(maps) for b in maps[:i]]
    assert min(distances) > 0.01  # every view of every video has a map of its own


def test_pixels_stay_in_range():
    got = train(pixel_batch(), COLOURS)
    assert got.min() >= 0 and got.max() <= 255.001


def test_randomness_depends_on_key_and_view_only():
    """Not on the place in the batch, its size or the number of views."""
    settings = dataclasses.replace(COLOURS, grey_probability=0.3, blur_probability=0.5)
    batch = pixel_batch(videos=4)
    want = train(batch, settings)
    order = np.array([2, 0, 3, 1])
    moved = {name: value[order] for name, value in batch.items()}
    np.testing.assert_allclose(train(moved, settings), want[order], atol=1e-2)
    part = {name: value[2:3] for name, value in batch.items()}
    part |= {name: part[name][:, :1] for name in ("clips", "size", "flip")}
    np.testing.assert_allclose(train(part, settings), want[2:3, :1], atol=1e-2)
    same = {name: np.stack([batch[name][0]] * 4) for name in ("clips", "size", "flip")}
    other = train(batch | same, settings)  # one video under four keys
    assert all(abs(other[0] - other[i]).max() > 1 for i in (1, 2, 3))
