"""A workdir belongs to one config."""

import copy

import pytest

from skd_jax import modes, workdir
from skd_jax.errors import UserError
from tests import tiny

CONFIG = {
    "optim": {"learning_rate": 0.1, "boundaries": (10, 20)},
    "data": {"root": "there", "workers": 4, "classes": ""},
    "train": {"replicas": "pmap", "threads": 0, "log_every": 20, "seed": 0},
}


def changed(**values):
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def test_the_same_config_is_accepted_again(tmp_path):
    folder = tmp_path / "deep" / "run"
    workdir.claim(folder, CONFIG)
    workdir.claim(folder, CONFIG)
    config = workdir.read_config(folder)
    assert config["optim"] == {"learning_rate": 0.1, "boundaries": [10, 20]}
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_another_config_is_refused_with_the_difference(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    other = changed(optim__learning_rate=0.2, train__seed=1, train__threads=9)
    other["optim"]["momentum"] = 0.9
    del other["data"]["classes"]
    with pytest.raises(UserError) as error:
        workdir.claim(tmp_path, other)
    head, *lines = str(error.value).splitlines()
    assert head.startswith(f"{tmp_path} was made with another config; take another --workdir")
    assert lines == [
        '  data.classes: "" there, absent now',
        "  optim.learning_rate: 0.1 there, 0.2 now",
        "  optim.momentum: absent there, 0.9 now",
        "  train.seed: 0 there, 1 now",
    ]
    assert workdir.read_config(tmp_path)["optim"]["learning_rate"] == 0.1


def test_a_command_that_trained_nothing_may_be_corrected(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    workdir.claim(tmp_path, changed(train__seed=1))
    assert workdir.read_config(tmp_path)["train"]["seed"] == 1


def test_what_belongs_to_the_machine_may_change(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    moved = changed(
        data__root="here", data__workers=1, train__replicas="shard_map", train__threads=3
    )
    workdir.claim(tmp_path, moved)
    assert workdir.read_config(tmp_path)["data"]["root"] == "here"


def test_a_run_of_before_there_was_a_key_goes_on(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    later = changed(data__frame_width=0, data__antialias=True)
    later["finetune"] = {"freeze": ""}
    workdir.claim(tmp_path, later)
    later["finetune"]["freeze"] = "stem"
    with pytest.raises(UserError, match='finetune.freeze: "" there, "stem" now'):
        workdir.claim(tmp_path, later)


def claimed_by(tmp_path, model):
    workdir.claim(tmp_path, CONFIG | {"model": model})
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    return lambda now: workdir.claim(tmp_path, CONFIG | {"model": now})


def test_a_model_option_left_out_is_the_models_default(tmp_path):
    """Before, every config had a dropout of 0.0, which is not what S3D has by itself."""
    claim = claimed_by(tmp_path / "old", {"name": "r3d_18", "dropout": 0.0})
    claim({"name": "r3d_18"})
    claim({"name": "r3d_18", "dropout": 0.0, "zero_init_residual": False})
    with pytest.raises(UserError, match=r"now$") as error:
        claim({"name": "r3d_18", "dropout": 0.1})
    assert str(error.value).splitlines()[1:] == ["  model.dropout: 0.0 there, 0.1 now"]

    claim = claimed_by(tmp_path / "s3d", {"name": "s3d", "dropout": 0.0})
    claim({"name": "s3d", "dropout": 0.0})
    with pytest.raises(UserError, match="model.dropout: 0.0 there, 0.2 now"):
        claim({"name": "s3d"})

    claim = claimed_by(tmp_path / "hara", {"name": "resnet3d_18"})
    claim({"name": "resnet3d_18", "remat": True})  # how it is run
    with pytest.raises(UserError, match='model.shortcut: "B" there, "A" now'):
        claim({"name": "resnet3d_18", "shortcut": "A"})
    with pytest.raises(UserError) as error:
        claim({"name": "r3d_18"})
    assert str(error.value).splitlines()[1:] == ['  model.name: "resnet3d_18" there, "r3d_18" now']


@pytest.mark.parametrize(
    "read,name", [(workdir.read_config, "config"), (workdir.read_data, "data")]
)
def test_a_folder_without_a_run(tmp_path, read, name):
    with pytest.raises(UserError, match=rf"holds no trained run \({name}.json is absent\)"):
        read(tmp_path / "none")


def test_a_damaged_file(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ')
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(UserError, match="config.json is damaged"):
        workdir.claim(tmp_path, CONFIG)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = tmp_path / "new" / "run"
    with workdir.locked(folder):
        with pytest.raises(UserError, match="another process is training in .*run; wait for it"):
            modes.run_train(tiny.config(tmp_path), folder, lambda _: None)
        assert not any(folder.iterdir())
        with workdir.locked(tmp_path / "other"):
            pass
    with workdir.locked(folder):  # free again
        pass


def test_flat():
    assert workdir.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }
