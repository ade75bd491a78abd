"""Weights to begin with: from a PyTorch checkpoint to a run, a prediction, and back."""

import shutil

import jax
import numpy as np
import pytest

from configs import common
from skd_jax import (
    checkpoint,
    classifier,
    export,
    initial,
    methods,
    models,
    modes,
    predict,
    workdir,
)
from skd_jax.data import synthetic
from skd_jax.data.decode import decode
from skd_jax.errors import UserError
from skd_jax.models import pretrained
from tests import tiny
from tests.fakes import quick_compilation, softmax  # noqa: F401  the first is a fixture

WIDTH = 0.0625
SAMPLING = {"data.frame_size", "data.frame_width", "data.antialias", "data.max_fps"}
SAMPLING |= {"clips.frames", "clips.stride", "augment.crop", "eval.clips"}


def random_variables(classes, name="r3d_10", seed=0, **options):
    model = models.create(name, classes, width=WIDTH, **options)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 4, 16, 16, 3))))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 4, shapes)
    stats = jax.tree.map(lambda x: np.abs(x) + 0.5, variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


def save(path, classes, name="r3d_10", seed=0, **options):
    variables = random_variables(classes, name, seed, **options)
    pretrained.save_torch(path, pretrained.to_torch(name, variables, width=WIDTH, **options))
    return variables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the demo's videos, and of weights for its eight classes."""
    folder = tmp_path_factory.mktemp("initial")
    save(folder / "weights.pth", 8)
    return folder


def config_of(folder, **changes):
    changes = {
        "init_from": str(folder / "weights.pth"),
        "model__width": WIDTH,
        "train__duration": "6 steps",
        "train__checkpoint_every": "2 steps",
        "train__eval_every": "6 steps",
        "train__keep": 5,
        **changes,
    }
    config = tiny.config(folder, **changes)
    config["method"] = {"name": "supervised", **methods.defaults("supervised")}
    return config


@pytest.fixture(scope="module")
def trained(folder):
    """A run of six steps that trains the head alone, its preprocessing set by hand: (folder, log)."""
    lines = []
    config = config_of(folder, finetune__freeze="backbone", finetune__freeze_batch_norm=True)
    modes.run_train(config, folder / "run", lines.append, SAMPLING)
    return folder / "run", lines


def final(run):
    checkpoints = checkpoint.Checkpoints(run / "checkpoints")
    return checkpoints.restore(checkpoints.steps()[-1])


def test_values_of_the_command_line_come_first_then_those_of_the_weights(folder, tmp_path):
    lines = []
    config = config_of(folder, augment__crop=16, augment__mean=(0.0, 0.0, 0.0))
    got = initial.resolve(config, {"augment.crop", "optim.momentum"}, tmp_path, lines.append)
    assert got["augment"]["crop"] == 16
    assert got["augment"]["mean"] == [0.43216, 0.394666, 0.37645]
    assert (got["data"]["frame_size"], got["data"]["frame_width"]) == (128, 171)
    assert got["data"]["antialias"] is False and got["data"]["max_fps"] == 15
    assert (got["clips"]["frames"], got["clips"]["stride"]) == (16, 1)
    assert (got["eval"]["clips"], got["eval"]["crops"]) == (5, 1)
    assert got["eval"]["batch_size"] == config["eval"]["batch_size"]
    assert got["train"] == config["train"]
    (line,) = lines
    assert "torchvision" in line and "data.frame_width=171" in line
    assert line.endswith("as on the command line: augment.crop")


def test_without_weights_nothing_changes(tmp_path):
    config = common.base_config().to_dict()
    assert initial.resolve(config, (), tmp_path, print) == config
    config["init_from"] = str(tmp_path / "none.pth")
    with pytest.raises(UserError, match="none.pth: there is no such file or workdir"):
        initial.resolve(config, (), tmp_path, print)


def test_a_run_begins_with_the_weights_and_frozen_ones_stay(folder, trained):
    run, lines = trained
    assert any("weights.pth, with the preprocessing of r3d_10" in line for line in lines)
    want = random_variables(8)
    flat = final(run)
    for collection, tree in want.items():
        for path, leaf in checkpoint.flatten(tree).items():
            got = flat[f"{collection}.model.{path}"]
            if path.startswith("fc."):
                assert np.all(got != leaf) and np.abs(got - leaf).max() < 0.1
            else:
                np.testing.assert_array_equal(got, leaf, err_msg=path)
    assert sum("opt_state" in name and "layer" in name for name in flat) == 0


def test_going_on_needs_the_weights_no_more(folder, trained, tmp_path):
    """Bit for bit the uninterrupted run; another file under that name is refused."""
    run, _ = trained
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for step in (4, 6):
        shutil.rmtree(again / "checkpoints" / str(step))
    stored = workdir.read_config(run)
    moved = tmp_path / "weights.pth"
    source = folder / "weights.pth"
    config = config_of(folder, finetune__freeze="backbone", finetune__freeze_batch_norm=True)
    source.rename(moved)
    try:
        lines = []
        modes.run_train(config, again, lines.append, SAMPLING)
        assert any("resuming at step 2 of 6" in line for line in lines)
        assert not any("preprocessing" in line for line in lines)
        want, got = final(run), final(again)
        assert want.keys() == got.keys()
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)

        save(source, 8, seed=1)
        with pytest.raises(UserError) as error:
            modes.run_train(config, again, print, SAMPLING)
        assert f'init_from_sha256: "{stored["init_from_sha256"]}" there' in str(error.value)
        # The same content elsewhere is the same.
        config["init_from"] = str(moved)
        resolved = initial.resolve(config, SAMPLING, again, print)
        assert resolved["init_from_sha256"] == stored["init_from_sha256"]
    finally:
        shutil.copy(moved, source)


def test_from_a_workdir_with_the_same_and_with_other_classes(folder, trained):
    run, _ = trained
    names = tuple(workdir.read_data(run)["class_names"])
    config = config_of(folder, init_from=str(run))
    resolved = initial.resolve(config, (), folder / "new", lambda _: None)
    assert resolved["augment"]["crop"] == 16 and resolved["clips"]["frames"] == 4
    judged = config_of(folder, init_from=str(run), eval__clips=7)  # as the new run wants it
    assert initial.resolve(judged, (), folder / "new", lambda _: None)["eval"]["clips"] == 7
    lines = []
    kept = initial.variables(resolved, names, lines.append)
    want = final(run)
    np.testing.assert_array_equal(kept["params"]["fc"]["kernel"], want["params.model.fc.kernel"])
    assert lines == []
    for other, words in (
        (names[::-1], "the same classes in another order"),
        ((*names[1:], "z"), "other classes"),
        (names[1:], "8 classes"),
    ):
        lines.clear()
        left = initial.variables(resolved, other, lines.append)
        (line,) = lines
        assert words in line and f"a new classifier for {len(other)}" in line
        assert "fc" not in left["params"] and "stem" in left["params"]


def test_what_does_not_fit_is_listed(folder, trained, tmp_path):
    wrong = config_of(folder, model__name="mc3_18")
    with pytest.raises(UserError, match=r"(?s)does not fit mc3_18.*layer1\.1\.conv1\.0\.weight"):
        initial.resolve(wrong, (), tmp_path, print)
    wrong = config_of(folder, init_from=str(trained[0]), model__width=0.125)
    with pytest.raises(UserError) as error:
        initial.resolve(wrong, (), tmp_path, print)
    assert "a r3d_10 of width 0.0625, do not fit r3d_10; set config.model" in str(error.value)
    assert "of another shape: params/stem/conv/kernel is (3, 7, 7, 3, 4), expected" in str(
        error.value
    )


def test_imported_weights_predict_as_torchvisions_preset(folder, tmp_path):
    """(128, 171), centre crop 112, mean, std, 15 frames a second, 5 clips: NumPy's way to it."""
    weights = folder / "seven.pth"
    variables = save(weights, 7)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"motion {k}\n" for k in range(7)))
    config = common.base_config("supervised").to_dict()
    config["model"] |= {"name": "r3d_10", "width": WIDTH}
    config["init_from"] = str(weights)
    config["clips"]["frames"] = 4
    run, lines = tmp_path / "imported", []
    modes.run_import(config, run, names, lines.append, {"clips.frames"})
    assert f"--mode=predict --workdir={run}" in lines[-1]

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (26, 9, 16, 3), np.uint8)
    video = tmp_path / "v.mp4"
    video.write_bytes(synthetic.encode(coarse.repeat(10, 1).repeat(10, 2), fps=30))
    (result,) = predict.run_predict(run, [str(video)], None, lines.append)

    frames = decode(video, short_side=None, max_fps=None).frames[::2]
    top, left = round((128 - 112) / 2), round((171 - 112) / 2)
    small = [np.rint(resized(frame, 128, 171)) for frame in frames]
    crops = np.stack(small)[:, top : top + 112, left : left + 112]
    seen, _ = predict._clips(video, workdir.read_config(run))
    clips = np.stack([crops[start : start + 4] for start in (0, 2, 4, 6, 9)])  # floor(2.25 k)
    difference = np.abs(seen["clips"][0, :, :, :112, :112] - clips)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    clips = ((clips / 255 - mean) / std).astype(np.float32)
    model = models.create("r3d_10", 7, width=WIDTH)
    want = softmax(model.apply(variables, clips, train=False).logits).mean(0)
    got = {entry["class"]: entry["probability"] for entry in result["predictions"]}
    assert len(got) == 5
    for name, probability in got.items():
        assert probability == pytest.approx(want[int(name.split()[1])], abs=2e-3)

    later = config | {"init_from": str(run), "eval": config["eval"] | {"crops": 3}}
    resolved = initial.resolve(later, {"eval.crops"}, tmp_path / "new", lambda _: None)
    assert (resolved["eval"]["clips"], resolved["eval"]["crops"]) == (5, 3)
    for action in (
        lambda: modes.run_evaluate(run, "", print),
        lambda: modes.run_train(config, run, print),
    ):
        with pytest.raises(UserError, match="imported weights and no training run"):
            action()
    names.write_text("one\ntwo\n")
    with pytest.raises(UserError, match="holds 2 names; .* has 7 classes"):
        modes.run_import(config, tmp_path / "other", names, print)


def resized(image, height, width):
    """Bilinear of the four nearest pixels as two matrices of interpolation weights, float64."""

    def matrix(size, out):
        at = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
        return np.stack([np.interp(at, np.arange(size), row) for row in np.eye(size)], axis=1)

    rows, columns = matrix(image.shape[0], height), matrix(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns, optimize=True)


def test_export_gives_back_what_torchvision_reads(folder, trained):
    run, _ = trained
    lines = []
    path = export.run_export(run, "torch", lines.append)
    got, first = (pretrained.load_state_dict(p) for p in (path, folder / "weights.pth"))
    assert list(got) == list(first)
    for key, value in first.items():
        if not key.startswith("fc."):
            np.testing.assert_array_equal(got[key], value, err_msg=key)
    np.testing.assert_array_equal(got["fc.bias"], final(run)["params.model.fc.bias"])
    described = tiny.read(run / "export" / "r3d_10.json")
    assert described["class_names"] == workdir.read_data(run)["class_names"]
    assert described["preprocessing"]["center_crop"] == 16
    assert described["preprocessing"]["resize"] == 20
    printed = "\n".join(lines)
    assert f'torch.load("{path}", weights_only=True)' in printed and "width 0.0625" in printed
    assert "torchvision.models" not in printed  # it builds the full width only
    with pytest.raises(UserError, match="unknown export format 'onnx'. Known: torch"):
        export.run_export(run, "onnx")


def test_export_names_torchvisions_constructors_and_no_others():
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d"):
        wanted = f"model = torchvision.models.video.{name}(num_classes=5)"
        assert export.construction(name, 1.0, 5) == wanted
        assert "torchvision.models" not in export.construction(name, 0.5, 5)
    for name in ("r3d_10", "r3d_34", "r2plus1d_34", "x3d_s"):
        line = export.construction(name, 1.0, 5)
        assert "torchvision.models" not in line and name in line and "5 classes" in line


def test_the_command_line_imports_and_keeps_its_own_values(folder, tmp_path):
    arguments = ["--config=configs/finetune.py", f"--config.init_from={folder / 'weights.pth'}"]
    arguments += ["--config.model.name=r3d_10", f"--config.model.width={WIDTH}"]
    arguments += ["--config.augment.crop=96", "--config.eval.clips=3"]
    status, output = tiny.run("--mode=import", f"--workdir={tmp_path}", *arguments)
    assert status == 0, output
    config = workdir.read_config(tmp_path)
    assert config["augment"]["crop"] == 96 and config["data"]["frame_width"] == 171
    assert (config["eval"]["clips"], config["eval"]["crops"]) == (3, 1)
    assert config["model"] == {"name": "r3d_10", "width": WIDTH, "dtype": "float32"}
    assert "as on the command line: augment.crop, eval.clips" in output
    assert workdir.read_data(tmp_path)["class_names"] == [f"class {k}" for k in range(8)]


def test_model_options_of_the_command_line_reach_the_model_and_its_preprocessing(folder, tmp_path):
    """A 3D-ResNet of 2018: shortcuts A, pixels of 0 to 255 minus a mean, resized by Pillow."""
    save(folder / "hara.pth", 3, name="resnet3d_10", shortcut="A")
    arguments = ["--mode=import", "--config=configs/finetune.py"]
    arguments += [f"--config.init_from={folder / 'hara.pth'}", f"--config.model.width={WIDTH}"]
    arguments += ["--config.model.name=resnet3d_10", f"--workdir={tmp_path}"]
    arguments += ["--config.model.shortcut=A", "--config.model.remat=True"]
    status, output = tiny.run(*arguments)
    assert status == 0, output
    config = workdir.read_config(tmp_path)
    model = {"name": "resnet3d_10", "width": WIDTH, "dtype": "float32"}
    assert config["model"] == model | {"shortcut": "A", "remat": True}
    assert config["augment"]["std"] == [1 / 255] * 3
    assert config["data"]["antialias"] is True and config["data"]["frame_width"] == 0
    assert config["eval"]["clips"] == 10  # the config's own: the source names no number
    assert "of 2017 and 2018" in output
    assert len(classifier.load(tmp_path).class_names) == 3
