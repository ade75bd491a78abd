"""Config dictionaries to typed settings."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from configs import common
from skd_jax import models, settings
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.models.resnet3d import ResNet3D
from skd_jax.optim import OptimSettings


@pytest.fixture
def config():
    return common.base_config().to_dict()


def everything(config):
    return (
        settings.augmentation(config),
        settings.optimiser(config, 12.5),
        settings.loop(config, 12.5),
        settings.method(config, 7),
    )


def test_a_config_read_back_from_json_means_the_same(config):
    config["optim"] |= {"schedule": "step", "boundaries": ("10 epochs", "300 steps")}
    stored = json.loads(json.dumps(config))
    assert everything(stored) == everything(config)
    hash(everything(stored))  # constants of a compiled step: lists would not do


def test_durations_become_steps(config):
    config["optim"] |= {"warmup": "2 epochs", "boundaries": ("10 epochs", 300)}
    config["train"] |= {"duration": "4 epochs", "eval_every": "1 epoch", "checkpoint_every": 7}
    got = settings.optimiser(config, 12.5)
    assert (got.warmup_steps, got.boundaries) == (25, (125, 300))
    loop = settings.loop(config, 12.5)
    assert (loop.total_steps, loop.eval_every, loop.checkpoint_every) == (50, 12, 7)
    assert loop.clip_shape == (16, 112, 112, 3)


def test_values_reach_their_fields(config):
    config["model"] |= {"name": "r3d_10", "width": 0.5, "dtype": "bfloat16", "dropout": 0.2}
    config["method"]["temperature"] = 4.0
    config["train"] |= {"seed": 3, "accumulate": 2, "ema_decay": 0.9, "replicas": "shard_map"}
    method = settings.method(config, 7)
    assert isinstance(method.model, ResNet3D)
    model = method.model
    assert (model.num_classes, model.width, model.dropout) == (7, 0.5, 0.2)
    assert model.dtype == jnp.bfloat16
    assert method.temperature == 4.0
    loop = settings.loop(config, 10)
    assert (loop.seed, loop.accumulate, loop.ema_decay, loop.replicas) == (3, 2, 0.9, "shard_map")


def test_the_common_recipe_names_every_field(config):
    """A setting that no config names could not be overridden."""
    assert set(config["augment"]) == {f.name for f in dataclasses.fields(AugmentSettings)}
    assert set(config["optim"]) - {"warmup"} | {"warmup_steps"} == {
        f.name for f in dataclasses.fields(OptimSettings)
    }


def test_every_option_of_every_model_can_be_set_and_none_is_by_default(config):
    keys = set(common.base_config().model)
    for name in models.names():
        elsewhere = {"axis_name", "freeze_batch_norm"}  # of the program; of config.finetune
        assert set(models.options(name)) - elsewhere <= keys, name
    assert {"remat", "shortcut", "stem_pool", "zero_init_residual"} <= keys
    assert config["model"] == {"name": "r3d_18", "width": 1.0, "dtype": "float32"}


def test_a_model_keeps_its_own_default_where_the_config_is_silent(config):
    config["model"]["name"] = "s3d"
    assert settings.method(config, 7).model.dropout == 0.2
    config["model"]["dropout"] = 0.0
    assert settings.method(config, 7).model.dropout == 0.0
    config["model"] = {"name": "resnet3d_18", "dtype": "float32", "shortcut": "A", "remat": True}
    model = settings.method(config, 7).model
    assert (model.shortcut, model.remat, model.zero_init_residual) == ("A", True, False)


def test_an_option_that_a_model_lacks_is_named_with_those_it_has(config):
    config["model"]["shortcut"] = "A"
    with pytest.raises(UserError) as error:
        settings.check(config)
    assert str(error.value) == (
        "unknown r3d_18 option 'shortcut'. Known: dropout, dtype, remat, width, zero_init_residual"
    )


@pytest.mark.parametrize(
    "section,key,value,message",
    [
        (
            "augment",
            "brigthness",
            1,
            r"key 'augment.brigthness'; did you mean 'augment.brightness'",
        ),
        ("optim", "learning_rat", 1, r"'optim.learning_rat'; did you mean 'optim.learning_rate'"),
        ("optim", "warmup_steps", 1, r"unknown config key 'optim.warmup_steps'"),
        ("model", "widht", 1, r"option 'widht'; did you mean 'width'"),
        ("model", "name", "r3d_19", r"unknown model 'r3d_19'; did you mean 'r3d_1"),
        (
            "model",
            "dtype",
            "float16",
            r"config.model.dtype='float16': take 'float32' or 'bfloat16'",
        ),
        ("method", "name", "skd", r"unknown method 'skd'"),
        ("method", "temprature", 1, r"did you mean 'temperature'"),
        ("optim", "warmup", "two epochs", r"config.optim.warmup: 'two epochs' is no duration"),
        ("optim", "boundaries", ("x",), r"config.optim.boundaries: 'x' is no duration"),
        ("train", "eval_every", "1 day", r"config.train.eval_every: '1 day' is no duration"),
        (
            "train",
            "duration",
            "0.01 epochs",
            r"config.train.duration='0.01 epochs' is less than one",
        ),
    ],
)
def test_mistakes_are_named(config, section, key, value, message):
    config[section][key] = value
    with pytest.raises(UserError, match=message):
        everything(config)


def test_intervals_are_at_least_one_step(config):
    config["train"] |= {"eval_every": "0.01 epochs", "checkpoint_every": "0.01 epochs"}
    loop = settings.loop(config, 12.5)
    assert (loop.eval_every, loop.checkpoint_every) == (1, 1)
