"""Lengths of training, in steps or in epochs."""

from skd_jax.errors import UserError


def steps(duration: int | str, steps_per_epoch: float, key: str = "duration") -> int:
    """Number of steps that a duration lasts.

    Args:
      duration: a whole number of steps, or text such as "500 steps", "25 epochs", "0.5 epochs".
      steps_per_epoch: examples over batch size; need not be whole.
      key: config key that the duration came from, for the error.

    Raises:
      UserError: the text is neither steps nor epochs, or the number is negative.
    """
    try:
        words = str(duration).split() if isinstance(duration, int | str) else []
        number, unit = words if len(words) == 2 else (*words, "steps")
        scale = {"step": 1, "steps": 1, "epoch": steps_per_epoch, "epochs": steps_per_epoch}[unit]
        length = round(float(number) * scale)
        if length < 0:
            raise ValueError("negative")
        return length
    except (KeyError, ValueError, OverflowError):
        raise UserError(
            f"config.{key}: {duration!r} is no duration; write e.g. '500 steps' or '25 epochs'"
        ) from None
