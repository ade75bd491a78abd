"""A teacher from outside: a workdir or a checkpoint, what is refused, and a run that outlives it."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from configs import common
from skd_jax import (
    checkpoint,
    datasets,
    methods,
    models,
    modes,
    predict,
    settings,
    step,
    teacher,
    train,
    workdir,
)
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.models import pretrained
from skd_jax.models.renormalised import Renormalised
from tests import tiny
from tests.fakes import quick_compilation  # noqa: F401  a fixture

WIDTH, TEACHERS = 0.0625, 0.09375
OWN = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def quiet(_):
    pass


def config_of(folder, method="kd", **changes):
    changes = {
        "train__duration": "4 steps",
        "train__checkpoint_every": "2 steps",
        "train__eval_every": "4 steps",
        "train__keep": 5,
        **changes,
    }
    config = tiny.config(folder, **changes)
    config["method"] = {"name": method, **methods.defaults(method)}
    if methods.takes_teacher(method):
        config["method"] |= {"teacher": str(folder / "teacher"), "teacher_model": ""}
    return config


def make_teacher(folder, place, seed=3, **changes):
    """A workdir with one checkpoint of random weights, its clips normalised by `OWN`."""
    config = config_of(folder, "supervised", model__width=TEACHERS, **changes)
    config["augment"] |= OWN
    data = datasets.describe(datasets.ensure_prepared(config, quiet))
    workdir.claim(place, config)
    workdir.write_json(place / workdir.DATA, data)
    method = settings.method(config, len(data["class_names"]))
    state = jax.device_get(
        step.create_state(
            method, optax.sgd(0.1), jax.random.key(seed), (4, 16, 16, 3), step.StepSettings(1)
        )
    )
    checkpoints = checkpoint.Checkpoints(place / workdir.CHECKPOINTS)
    checkpoints.save(1, state)
    checkpoints.close()
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    make_teacher(folder, folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """A student's run, after which its teacher is gone: (workdir, log)."""
    lines = []
    modes.run_train(config_of(folder), folder / "student", lines.append)
    (folder / "teacher").rename(folder / "gone")
    return folder / "student", lines


def restored(run, number):
    return checkpoint.Checkpoints(run / "checkpoints").restore(number)


def test_a_workdirs_network_and_weights_are_the_teacher(folder, trained):
    run, lines = trained
    assert any(line.startswith("teacher: r3d_10 of") and "8 classes" in line for line in lines)
    want = checkpoint.Checkpoints(folder / "gone" / "checkpoints").restore(1)
    for number in (2, 4):
        flat = restored(run, number)
        names = [name for name in want if name.startswith(("params.model.", "batch_stats.model."))]
        for name in names:
            got = flat[f"method_state.teacher.{name.replace('.model.', '.', 1)}"]
            np.testing.assert_array_equal(got, want[name], err_msg=name)
        assert sum(name.startswith("method_state.teacher.") for name in flat) == len(names)
    assert not any("teacher" in name for name in flat if not name.startswith("method_state."))

    config = workdir.read_config(run)
    described = config["teacher"]
    assert described["model"] == {"name": "r3d_10", "width": TEACHERS, "dtype": "float32"}
    assert described["classes"] == 8 and described["mean"] == list(OWN["mean"])
    module = settings.teacher(config)
    assert isinstance(module, Renormalised)
    augment = config["augment"]
    pixels = np.random.default_rng(0).random((1, 3))
    clip = (pixels - augment["mean"]) / augment["std"]
    np.testing.assert_allclose(
        clip * module.scale + module.shift, (pixels - OWN["mean"]) / OWN["std"], rtol=1e-5
    )


def test_the_workdir_needs_its_teacher_no_more(folder, trained, tmp_path):
    """Evaluated, predicted with and gone on with, bit for bit, once the teacher's folder is gone."""
    run, _ = trained
    assert not (folder / "teacher").exists()
    results = modes.run_evaluate(run, "", quiet)
    plain = models.create("r3d_10", 8, width=WIDTH)
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), np.zeros((1, 4, 16, 16, 3))))
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))
    assert results["parameters"] == count
    video = next((folder / "videos").rglob("*.mp4"))
    (prediction,) = predict.run_predict(run, [str(video)], None, quiet)
    assert len(prediction["predictions"]) == 5

    again, lines = tmp_path / "again", []
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    modes.run_train(config_of(folder), again, lines.append)
    assert any("resuming at step 2 of 4" in line for line in lines)
    want, got = restored(run, 4), restored(again, 4)
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_another_teacher_is_another_run(folder, trained, tmp_path):
    run, _ = trained
    make_teacher(folder, tmp_path / "other", seed=4)
    config = config_of(folder)
    config["method"]["teacher"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"teacher\.sha256: .* there"):
        modes.run_train(config, run, quiet)
    config["method"]["teacher"] = str(folder / "gone")  # the same one in another place
    assert teacher.resolve(config, run, quiet)["teacher"] == workdir.read_config(run)["teacher"]


def test_a_checkpoint_is_a_teacher_too(tmp_path):
    path = tmp_path / "weights.pth"
    model = models.create("r3d_10", 7)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 4, 16, 16, 3))))
    given = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), shapes)
    pretrained.save_torch(path, pretrained.to_torch("r3d_10", given))
    config = common.base_config("fitnet").to_dict()
    config["method"]["teacher"] = str(path)
    with pytest.raises(UserError, match="is a file; set --config.method.teacher_model"):
        teacher.resolve(config, tmp_path, quiet)
    config["method"]["teacher_model"] = "r3d_10"
    lines = []
    config["augment"]["crop"] = 64
    resolved = teacher.resolve(config, tmp_path, lines.append)
    assert any("trained on other clips: stride 1, now 2; crop 112, now 64" in x for x in lines)
    described = json.loads(json.dumps(resolved["teacher"]))
    assert described["classes"] == 7 and described["mean"] == [0.43216, 0.394666, 0.37645]
    settings.check(resolved)
    method = settings.method(resolved, 5)
    assert method.teacher == models.create("r3d_10", 7)  # torchvision's mean and std, as ours
    found = teacher.variables(resolved, method, tuple("abcde"), quiet)
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"], given["params"]["fc"]["kernel"])

    kd = common.base_config("kd").to_dict()
    kd["method"] |= {key: config["method"][key] for key in ("teacher", "teacher_model")}
    kd = teacher.resolve(kd, tmp_path, quiet)
    with pytest.raises(UserError, match="has 7 classes, this run 5; its class probabilities are"):
        teacher.variables(kd, settings.method(kd, 5), tuple("abcde"), quiet)
    assert teacher.variables(kd, settings.method(kd, 7), tuple("abcdefg"), quiet)


def test_a_workdirs_classes_must_be_the_runs_own_where_they_are_compared(folder, tmp_path):
    place = tmp_path / "teacher"
    make_teacher(folder, place)
    names = tuple(workdir.read_data(place)["class_names"])
    config = config_of(folder)
    config["method"]["teacher"] = str(place)
    config = teacher.resolve(config, tmp_path / "new", quiet)
    method = settings.method(config, 8)
    assert teacher.variables(config, method, names, quiet).keys() == {"params", "batch_stats"}
    for other, words in (
        (names[::-1], "the same classes in another order"),
        ((*names[1:], "zzz"), rf"other classes \({names[0]}\) than this run \(zzz\)"),
        (names[1:], "8 classes, this run 7"),
    ):
        with pytest.raises(UserError, match=words):
            teacher.variables(config, method, other, quiet)
    features = config | {"method": {**config["method"], "name": "pkt"}}
    for key in ("lambda_ce", "lambda_kd"):
        features["method"].pop(key)
    assert teacher.variables(features, settings.method(features, 7), names[1:], quiet)


def test_what_is_no_teacher_is_refused(folder, tmp_path):
    for method in methods.names():
        config = common.base_config(method).to_dict()
        assert ("teacher" in config["method"]) == methods.takes_teacher(method)
        settings.method(config, 3)
    config = common.base_config("kd").to_dict()
    with pytest.raises(
        UserError, match="method kd learns from a teacher; set --config.method.teac"
    ):
        teacher.resolve(config, tmp_path, quiet)
    config["method"]["teacher"] = str(tmp_path / "none")
    with pytest.raises(UserError, match="config.method.teacher=.*none: there is no such file or"):
        teacher.resolve(config, tmp_path, quiet)
    config["method"]["teacher"] = str(tmp_path)
    with pytest.raises(UserError, match="holds no trained run"):
        teacher.resolve(config, tmp_path / "new", quiet)
    make_teacher(folder, tmp_path / "teacher")
    config["method"] |= {"teacher": str(tmp_path / "teacher"), "teacher_model": "r3d_18"}
    with pytest.raises(UserError, match="teacher_model=r3d_18: .* holds a r3d_10; a workdir knows"):
        teacher.resolve(config, tmp_path / "new", quiet)
    own = config_of(folder, "tf_kd_self")
    own["method"]["teacher"] = str(tmp_path / "teacher")
    own = teacher.resolve(own, tmp_path / "new", quiet)
    with pytest.raises(UserError, match="tf_kd_self: config.method.teacher must be a run of"):
        settings.check(own)
    own["model"]["width"] = TEACHERS
    settings.check(own)
    plain = common.base_config("supervised").to_dict()
    assert teacher.resolve(plain, tmp_path, quiet) == plain
    plain["method"]["teacher"] = "x"
    with pytest.raises(UserError, match="method 'supervised' takes no teacher; leave it out"):
        settings.method(plain, 3)


def test_the_loop_refuses_a_teacher_without_weights(tmp_path):
    model = models.create("r3d_10", 3, width=WIDTH)
    with pytest.raises(UserError, match="needs the teacher's variables; give `teacher`"):
        train.train(
            methods.create("kd", model, teacher=model),
            optax.sgd(0.1),
            optax.constant_schedule(0.1),
            AugmentSettings(crop=8),
            train.LoopSettings(total_steps=1, clip_shape=(2, 8, 8, 3)),
            train.Data(None, None, None),
            tmp_path,
        )
