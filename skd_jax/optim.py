"""Optimisers and learning-rate schedules, from optax."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from skd_jax import finetune
from skd_jax.errors import UserError
from skd_jax.names import look_up

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """How the parameters move.

    Attributes:
      name: "sgd" (Nesterov momentum), "adamw" or "lars".
      learning_rate: at its peak.
      momentum: of SGD and LARS.
      weight_decay: on kernels only, never on BatchNorm or biases. Added to the gradient for SGD and LARS
        (L2, as PyTorch's SGD), decoupled for AdamW.
      schedule: "cosine" (to zero), "step" or "constant", after the warm-up.
      warmup_steps: linear from zero to the peak.
      boundaries: steps at which "step" multiplies the rate by `decay`.
      decay: that factor.
      clip_norm: largest global norm of the gradient; 0 does not clip.

    Raises:
      UserError: a value out of range.
    """

    name: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    boundaries: tuple[int, ...] = ()
    decay: float = 0.1
    clip_norm: float = 0.0

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise UserError(f"config.optim.{name} is {getattr(self, name)}; take 0 or more")
        if not 0 <= self.momentum < 1:
            raise UserError(f"config.optim.momentum is {self.momentum}; take one in [0, 1)")


def schedule(settings: OptimSettings, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the step, warm-up included.

    Raises:
      UserError: unknown schedule, or a warm-up longer than the training.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if warmup > total_steps:
        raise UserError(
            f"config.optim.warmup lasts {warmup} steps, the whole training {total_steps}; shorten it"
        )

    def step() -> optax.Schedule:
        # join_schedules restarts the count behind the warm-up; boundaries are counted from 0. Those
        # that fall within the warm-up meet at its end, and each of them counts.
        factors: dict[int, float] = {}
        for boundary in settings.boundaries:
            at = max(boundary - warmup, 0)
            factors[at] = factors.get(at, 1.0) * settings.decay
        return optax.piecewise_constant_schedule(peak, factors)

    after = look_up(
        "schedule",
        settings.schedule,
        {
            "cosine": lambda: optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1)),
            "step": step,
            "constant": lambda: optax.constant_schedule(peak),
        },
    )()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decays(params: PyTree) -> PyTree:
    """True for the parameters that weight decay acts on: arrays of two or more axes (kernels)."""
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def optimiser(
    settings: OptimSettings,
    total_steps: int,
    constant: tuple[str, ...] = (),
    lr_groups: tuple[tuple[str, float], ...] = (),
) -> optax.GradientTransformation:
    """Gradient transformation for parameters nested as {network: tree}.

    Args:
      settings: see `OptimSettings`.
      total_steps: length of the schedule.
      constant: networks whose rate stays at the peak from the first step to the last (SimSiam keeps
        its predictor's rate constant).
      lr_groups: (pattern, factor of the learning rate), see `finetune`.

    Raises:
      UserError: unknown optimiser or schedule.
    """

    def rule(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        decay, momentum = settings.weight_decay, settings.momentum
        return look_up(
            "optimiser",
            settings.name,
            {
                "sgd": lambda: optax.chain(
                    optax.add_decayed_weights(decay, mask=decays),
                    optax.sgd(rate, momentum=momentum or None, nesterov=momentum > 0),
                ),
                "adamw": lambda: optax.adamw(rate, weight_decay=decay, mask=decays),
                "lars": lambda: optax.lars(
                    rate,
                    weight_decay=decay,
                    weight_decay_mask=decays,
                    trust_ratio_mask=decays,
                    momentum=momentum,
                ),
            },
        )()

    moving = rule(schedule(settings, total_steps))
    if constant:
        moving = optax.partition(
            {"moving": moving, "constant": rule(settings.learning_rate)},
            lambda params: {
                name: jax.tree.map(
                    lambda _, n=name: "constant" if n in constant else "moving", tree
                )
                for name, tree in params.items()
            },
        )
    if lr_groups:
        # Every rule above is linear in its rate, so a factor of its updates is one of the rate.
        moving = optax.chain(moving, finetune.scale_by_group(lr_groups))
    if settings.clip_norm > 0:
        moving = optax.chain(optax.clip_by_global_norm(settings.clip_norm), moving)
    return moving
