"""Plain config dictionaries to the typed settings of each part.

The command line and the configs speak ConfigDict, a workdir stores JSON; the loop and all below it take
frozen dataclasses.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import durations, finetune, methods, models, names, optim
from skd_jax.augment import AugmentSettings
from skd_jax.data.clips import ClipSettings
from skd_jax.errors import UserError
from skd_jax.finetune import FinetuneSettings
from skd_jax.models.renormalised import renormalised
from skd_jax.optim import OptimSettings
from skd_jax.train import LoopSettings

T = TypeVar("T")
Config = Mapping[str, Any]

# Of a model's options, what the config says elsewhere or the program decides.
_NOT_OF_THE_MODEL = ("axis_name", "freeze_batch_norm")


def dataclass_from(kind: type[T], values: Config, section: str, **fixed: Any) -> T:
    """A dataclass from a config section.

    Args:
      kind: the dataclass.
      values: its fields by name; lists become tuples, as JSON has none.
      section: name of the config section, for errors.
      **fixed: further fields, which the section does not hold.

    Raises:
      UserError: a key is no field; the message gives the nearest one.
    """
    fields = {field.name for field in dataclasses.fields(kind)} - set(fixed)
    for key in values:
        if key not in fields:
            raise names.unknown(
                "config key", f"{section}.{key}", [f"{section}.{f}" for f in fields]
            )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for field in dataclasses.fields(kind):
        default = field.default
        if field.name not in values or not isinstance(default, tuple) or not default:
            continue
        value = values[field.name]
        if not isinstance(value, tuple) or len(value) != len(default):
            raise UserError(
                f"config.{section}.{field.name}={value!r}: write {len(default)} numbers, "
                f'such as "{default}"'
            )
    return kind(**values, **fixed)


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How videos are judged.

    Attributes:
      clips: K clips of a video, uniform over its length.
      crops: C crops of each, along the long side.
      batch_size: videos at a time, over all devices.
      validation_clips: K of the evaluations during training, with one crop.

    Raises:
      UserError: a value below 1.
    """

    clips: int = 10
    crops: int = 1
    batch_size: int = 8
    validation_clips: int = 2

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"config.eval.{name} is {value}; take 1 or more")


def model_defaults(name: str) -> dict[str, Any]:
    """What config.model takes beside a model's name, with the model's own defaults.

    Raises:
      UserError: no model has this name.
    """
    defaults = models.defaults(name)
    return {option: defaults[option] for option in defaults if option not in _NOT_OF_THE_MODEL}


def model_options(config: Config) -> tuple[str, dict[str, Any]]:
    """The name and the options of config.model, dtype as text.

    Raises:
      UserError: there is no such model, or it has no such option.
    """
    options = dict(config["model"])
    name = options.pop("name")
    known = model_defaults(name)
    for option in options:
        if option not in known:
            raise names.unknown(f"{name} option", option, known)
    return name, options


def method(config: Config, num_classes: int, num_videos: int = 0) -> methods.Method:
    """The training method with its classifier, and its teacher where it has one.

    Args:
      config: all of it; `teacher.resolve` has described the teacher in it.
      num_classes: of the classifier.
      num_videos: in the training split, for methods that remember each of them; 0 where the method
        is not to be trained.

    Raises:
      UserError: unknown model, method or option.
    """
    name, options = model_options(config)
    dtype = options.pop("dtype")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.model.dtype={dtype!r}: take 'float32' or 'bfloat16'")
    options["freeze_batch_norm"] = finetuning(config).freeze_batch_norm
    model = models.create(name, num_classes, dtype=jnp.dtype(dtype), **options)
    hyper_parameters = dict(config["method"])
    name = hyper_parameters.pop("name")
    if methods.takes_teacher(name):
        for key in ("teacher", "teacher_model"):  # where it is; what it is, the config describes
            hyper_parameters.pop(key, None)
        hyper_parameters["teacher"] = teacher(config)
    return methods.create(name, model, num_videos=num_videos, **hyper_parameters)


def teacher(config: Config) -> nn.Module | None:
    """The network that the config describes as the teacher, for the clips of this run.

    None where no teacher is described, as before `teacher.resolve`.
    """
    described = config.get("teacher")
    if not described:
        return None
    options = dict(described["model"])
    name, dtype = options.pop("name"), jnp.dtype(options.pop("dtype"))
    network = models.create(name, described["classes"], dtype=dtype, **options)
    given, wanted = ((part["mean"], part["std"]) for part in (config["augment"], described))
    return renormalised(network, given, wanted)


def check(config: Config) -> None:
    """Raises a UserError for what is wrong with a config, before hours of preparation.

    What depends on the data alone (the number of classes, the length of an epoch) is taken as any.
    """
    any_method = method(config, num_classes=1)
    lengths = optimiser(config, steps_per_epoch=1e6)
    steps = loop(config, steps_per_epoch=1e6)
    optim.optimiser(lengths, steps.total_steps, any_method.constant_lr)
    _check_finetuning(finetuning(config), any_method, steps.clip_shape)
    augmentation(config)
    clips(config, any_method.num_views, any_method.partners)
    evaluation(config)
    crop_fraction(config)


def finetuning(config: Config) -> FinetuneSettings:
    """What of the network is trained, and how fast; all of it where the config says nothing.

    Raises:
      UserError: an unknown key, or a group that is no PATTERN=FACTOR.
    """
    values = dict(config.get("finetune", {}))
    values["freeze"] = finetune.parse_names(values.get("freeze", ""))
    values["lr_groups"] = finetune.parse_groups(values.get("lr_groups", ""), "finetune.lr_groups")
    return dataclass_from(FinetuneSettings, values, "finetune")


def _check_finetuning(
    chosen: FinetuneSettings, any_method: methods.Method, clip_shape: tuple[int, ...]
) -> None:
    if not chosen.freeze and not chosen.lr_groups:
        return
    clips = jax.ShapeDtypeStruct((1, *clip_shape), jnp.float32)
    variables = jax.eval_shape(any_method.init, jax.random.key(0), clips)
    finetune.check(variables["params"], chosen.freeze, "finetune.freeze")
    groups = [pattern for pattern, _ in chosen.lr_groups]
    finetune.check(variables["params"], groups, "finetune.lr_groups")
    finetune.frozen(variables, chosen.freeze, chosen.freeze_batch_norm)


def clips(config: Config, views: int, partners: int = 0) -> ClipSettings:
    """How training views are drawn; `views` of each video, the last `partners` of others of its class.

    Raises:
      UserError: an unknown key, or a value no clip could be drawn with.
    """
    canvas = config["data"]["frame_size"]
    return dataclass_from(
        ClipSettings, config["clips"], "clips", views=views, partners=partners, canvas=canvas
    )


def evaluation(config: Config) -> EvalSettings:
    """How videos are judged.

    Raises:
      UserError: an unknown key, or a value below 1.
    """
    return dataclass_from(EvalSettings, config["eval"], "eval")


def crop_fraction(config: Config) -> float:
    """Side of a test crop as a share of the stored short side: 112 pixels of 128, say.

    Raises:
      UserError: the crop is larger than what is stored, or that is higher than wide.
    """
    crop, stored = config["augment"]["crop"], config["data"]["frame_size"]
    if crop > stored:
        raise UserError(
            f"config.augment.crop={crop} is larger than config.data.frame_size={stored}; "
            f"frames of about {round(crop * 8 / 7)} leave room for cropping"
        )
    width = config["data"].get("frame_width", 0)
    if width and width < stored:
        raise UserError(
            f"config.data.frame_width={width} is less than config.data.frame_size={stored}, the "
            "height; frames must be as wide as high, or wider"
        )
    return crop / stored


def augmentation(config: Config) -> AugmentSettings:
    """Crop, normalisation and photometric augmentation.

    Raises:
      UserError: an unknown key, or a value out of range.
    """
    return dataclass_from(AugmentSettings, config["augment"], "augment")


def optimiser(config: Config, steps_per_epoch: float) -> OptimSettings:
    """The optimiser, its durations in steps.

    Args:
      config: all of it.
      steps_per_epoch: training videos over batch size.
    """
    values = dict(config["optim"])
    return dataclass_from(
        OptimSettings,
        {k: v for k, v in values.items() if k not in ("warmup", "boundaries")},
        "optim",
        warmup_steps=durations.steps(values["warmup"], steps_per_epoch, "optim.warmup"),
        boundaries=tuple(
            durations.steps(b, steps_per_epoch, "optim.boundaries") for b in values["boundaries"]
        ),
    )


def loop(config: Config, steps_per_epoch: float) -> LoopSettings:
    """Lengths and intervals of training, in steps.

    Args:
      config: all of it.
      steps_per_epoch: training videos over batch size.

    Raises:
      UserError: an interval that is no duration, or no step at all.
    """
    values = config["train"]

    def steps(key: str) -> int:
        return durations.steps(values[key], steps_per_epoch, f"train.{key}")

    total = steps("duration")
    if total < 1:
        raise UserError(f"config.train.duration={values['duration']!r} is less than one step")
    crop = config["augment"]["crop"]
    return LoopSettings(
        total_steps=total,
        clip_shape=(config["clips"]["frames"], crop, crop, 3),
        # Less than a step, as of a small data set, means every step; zero is a mistake.
        eval_every=steps("eval_every") or _every(values, "eval_every"),
        checkpoint_every=steps("checkpoint_every") or _every(values, "checkpoint_every"),
        freeze=finetuning(config).freeze,
        **{
            key: values[key]
            for key in ("seed", "log_every", "keep", "accumulate", "ema_decay", "replicas")
        },
    )


def _every(values: Config, key: str) -> int:
    if durations.steps(values[key], 1e6, f"train.{key}") == 0:
        raise UserError(f"config.train.{key}={values[key]!r}: take at least one step")
    return 1
