"""Clip augmentation on the device: resizing, flip, blur and colour, the same for all frames.

The host decodes only the sampled crop windows; everything after that is linear algebra here. Resize,
flip and blur are separable and linear, so they are one matrix for each axis, made per clip and applied
to all its frames; brightness, contrast, saturation, hue and grey are one affine map of the colours.
Randomness comes from the batch's keys, a function of (seed, epoch, video, view), never of the device.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from skd_jax.errors import UserError

# Full float32: on accelerators the default would round pixels to fewer bits than they have.
_EXACT = jax.lax.Precision.HIGHEST
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32
)


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Size, normalisation and photometric augmentation of clips.

    Attributes:
      crop: side of the square frames the model sees, pixels.
      mean, std: of the pixels in [0, 1], per RGB channel.
      brightness, contrast, saturation: s draws a factor from U(max(0, 1 - s), 1 + s).
      hue: h draws a rotation of the hue from U(-h, h), in turns (0.5 is opposite).
      jitter_probability: of applying these four at all.
      grey_probability: of removing the colour.
      blur_probability: of a Gaussian blur.
      blur_sigma: its standard deviation is drawn from this range, in output pixels.

    Raises:
      UserError: a value out of range.
    """

    crop: int = 112
    mean: tuple[float, float, float] = (0.43216, 0.394666, 0.37645)
    std: tuple[float, float, float] = (0.22803, 0.22145, 0.216989)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 0.8
    grey_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        if self.crop < 1:
            raise UserError(f"config.augment.crop is {self.crop}; take 1 or more")
        for name in ("jitter_probability", "grey_probability", "blur_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(
                    f"config.augment.{name} is {getattr(self, name)}; take one in [0, 1]"
                )
        for name in ("brightness", "contrast", "saturation", "hue"):
            if getattr(self, name) < 0:
                raise UserError(f"config.augment.{name} is {getattr(self, name)}; take 0 or more")

    @property
    def jitters(self) -> bool:
        """Whether any of brightness, contrast, saturation and hue varies."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


def train_clips(
    clips: chex.Array,
    size: chex.Array,
    flip: chex.Array,
    key: chex.Array,
    settings: AugmentSettings,
) -> chex.Array:
    """Resized, augmented and normalised training clips.

    Args:
      clips: (B, V, T, S, S, 3) uint8; the crop window lies in the top-left corner.
      size: (B, V, 2) integer height and width of the window.
      flip: (B, V) bool, mirror left to right.
      key: (B, 2) uint32, one key per video; each view folds its number in.
      settings: crop size and strengths.

    Returns:
      (B, V, T, crop, crop, 3) float32.
    """
    keys = jax.random.wrap_key_data(key, impl="threefry2x32")
    views = jnp.arange(clips.shape[1])
    keys = jax.vmap(lambda k: jax.vmap(lambda v: jax.random.fold_in(k, v))(views))(keys)
    return jax.vmap(jax.vmap(lambda *clip: _train_clip(*clip, settings)))(clips, size, flip, keys)


def eval_clips(clips: chex.Array, size: chex.Array, settings: AugmentSettings) -> chex.Array:
    """Resized and normalised clips, nothing random; shapes as in `train_clips`."""

    def one(clip, window):
        rows = resize_matrix(window[0], clip.shape[1], settings.crop)
        columns = resize_matrix(window[1], clip.shape[2], settings.crop)
        return _normalise(_resample(clip, rows, columns), settings)

    return jax.vmap(jax.vmap(one))(clips, size)


def resize_matrix(size: chex.Array, canvas: int, out: int) -> chex.Array:
    """Bilinear resizing of the first `size` of `canvas` pixels to `out`, as a matrix.

    Half-pixel centres; when shrinking, the triangle is widened by the scale (antialiasing), as in
    `jax.image.resize`. Pixels outside the window have weight zero.

    Args:
      size: integer scalar, 1 <= size <= canvas.
      canvas: number of input pixels.
      out: number of output pixels.

    Returns:
      (out, canvas) float32 whose rows sum to 1.
    """
    scale = size.astype(jnp.float32) / out
    centre = (jnp.arange(out, dtype=jnp.float32) + 0.5) * scale - 0.5
    pixel = jnp.arange(canvas, dtype=jnp.float32)
    distance = jnp.abs(centre[:, None] - pixel[None, :]) / jnp.maximum(scale, 1.0)
    weight = jnp.where(pixel < size, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


def blur_matrix(sigma: chex.Array, length: int) -> chex.Array:
    """Gaussian blur along an axis of `length` pixels, edges renormalised; (length, length)."""
    pixel = jnp.arange(length, dtype=jnp.float32)
    distance = pixel[:, None] - pixel[None, :]
    weight = jnp.exp(-0.5 * jnp.square(distance / jnp.maximum(sigma, 1e-3)))
    return weight / weight.sum(axis=1, keepdims=True)


def colour_map(
    key: chex.PRNGKey, mean_rgb: chex.Array, settings: AugmentSettings
) -> tuple[chex.Array, chex.Array]:
    """Brightness, contrast, saturation, hue and grey as x -> matrix @ x + offset on RGB pixels.

    Applied in this order and without clipping in between, which is what keeps them affine. Contrast
    blends with the mean luma of the whole clip, so it is steady over time; hue rotates the chroma
    plane of YIQ.

    Args:
      key: PRNG key of one clip.
      mean_rgb: (3,) mean colour of the clip.
      settings: strengths and probabilities.

    Returns:
      ((3, 3), (3,)) float32.
    """
    keys = jax.random.split(key, 6)
    identity, luma = jnp.eye(3), jnp.tile(_LUMA, (3, 1))

    def factor(key, strength):
        return jax.random.uniform(key, minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)

    brightness = factor(keys[0], settings.brightness)
    contrast = factor(keys[1], settings.contrast)
    saturation = factor(keys[2], settings.saturation)
    angle = 2 * jnp.pi * jax.random.uniform(keys[3], minval=-settings.hue, maxval=settings.hue)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.zeros((3, 3)).at[0, 0].set(1.0)
    rotation = rotation.at[1:, 1:].set(jnp.array([[cos, -sin], [sin, cos]]))
    hue = np.linalg.inv(_RGB_TO_YIQ) @ rotation @ _RGB_TO_YIQ
    chroma = hue @ (saturation * identity + (1 - saturation) * luma)
    offset = (1 - contrast) * brightness * jnp.dot(luma, mean_rgb)
    jitter = jax.random.bernoulli(keys[4], settings.jitter_probability)
    matrix = jnp.where(jitter, contrast * brightness * chroma, identity)
    offset = jnp.where(jitter, chroma @ offset, 0.0)
    grey = jax.random.bernoulli(keys[5], settings.grey_probability)
    return jnp.where(grey, luma @ matrix, matrix), jnp.where(grey, luma @ offset, offset)


def _train_clip(clip, size, flip, key, settings: AugmentSettings):
    rows = resize_matrix(size[0], clip.shape[1], settings.crop)
    columns = resize_matrix(size[1], clip.shape[2], settings.crop)
    columns = jnp.where(flip, columns[::-1], columns)
    colour_key, blur_key = jax.random.split(key)
    if settings.blur_probability > 0:
        draw, width = jax.random.split(blur_key)
        low, high = settings.blur_sigma
        sigma = jax.random.uniform(width, minval=low, maxval=high)
        blurred = jax.random.bernoulli(draw, settings.blur_probability)
        blur = blur_matrix(jnp.where(blurred, sigma, 0.0), settings.crop)
        rows, columns = blur @ rows, blur @ columns
    pixels = _resample(clip, rows, columns)
    if settings.jitters or settings.grey_probability > 0:
        matrix, offset = colour_map(colour_key, pixels.mean(axis=(0, 1, 2)), settings)
        pixels = jnp.einsum("thwc,dc->thwd", pixels, matrix, precision=_EXACT) + offset
        pixels = jnp.clip(pixels, 0.0, 255.0)
    return _normalise(pixels, settings)


def _resample(clip, rows, columns):
    pixels = clip.astype(jnp.float32)
    pixels = jnp.einsum("oh,thwc->towc", rows, pixels, precision=_EXACT)
    return jnp.einsum("pw,towc->topc", columns, pixels, precision=_EXACT)


def _normalise(pixels, settings: AugmentSettings):
    mean = 255.0 * np.array(settings.mean, np.float32)
    std = 255.0 * np.array(settings.std, np.float32)
    return (pixels - mean) / std
