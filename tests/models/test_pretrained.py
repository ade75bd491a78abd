"""State dicts to variables and back: names, shapes, values, new classifiers, mistakes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from skd_jax import models
from skd_jax.errors import UserError
from skd_jax.models import pretrained
from skd_jax.models.pretrained import convert, layout
from tests.models import torch_keys

DEEP = {"resnet3d_152", "resnet3d_200", "ircsn_101", "ipcsn_101", "ircsn_152", "ipcsn_152", "x3d_l"}
NAMED = [name for name in models.names() if models.describe(name).torch]
SMALL = "r3d_10"
WIDTH = 1 / 32


@functools.cache
def traced(model, names):
    return layout.slots(model, (8, 32, 32), names)


def slots(model, clip, names):
    """As `layout.slots`, each network traced once: tracing takes nearly all the time here."""
    return traced(model, names)


@pytest.fixture(scope="module", autouse=True)
def trace_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "slots", slots)
        yield
    traced.cache_clear()


def draw(name, num_classes=3, **options):
    """A state dict of the model with all numbers different, at a small width."""
    entry = models.describe(name)
    model = models.create(name, num_classes, **options)
    rng = np.random.default_rng(0)
    return {
        slot.key: rng.standard_normal(slot.torch_shape).astype(np.float32)
        for slot in slots(model, entry.clip, entry.torch)
    }


@pytest.fixture(scope="module")
def small():
    return draw(SMALL, width=WIDTH)


def test_only_shufflenet2p1d_has_no_torch_names():
    assert set(models.names()) - set(NAMED) == {"shufflenet2p1d"}


@pytest.mark.parametrize("name", NAMED)
def test_keys_and_shapes_of_the_reference(name):
    entry = models.describe(name)
    found = {
        s.key: s.torch_shape for s in slots(entry.build(num_classes=7), entry.clip, entry.torch)
    }
    want = dict(torch_keys.reference(name, 7))
    assert found == {k: s for k, s in want.items() if not k.endswith("num_batches_tracked")}


def test_shortcut_a_has_no_downsample_keys():
    entry = models.describe("resnet3d_18")
    model = models.create("resnet3d_18", 7, shortcut="A")
    found = {slot.key: slot.torch_shape for slot in slots(model, entry.clip, entry.torch)}
    want = dict(torch_keys.hara((2, 2, 2, 2), bottleneck=False, classes=7, shortcut="A"))
    assert found == {k: s for k, s in want.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in NAMED],
)
def test_round_trip(name):
    state_dict = draw(name, width=WIDTH)
    variables = pretrained.from_torch(name, state_dict, width=WIDTH)
    leaves = jax.tree.leaves(variables)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    back = pretrained.to_torch(name, variables, width=WIDTH)
    keys = [key for key, _ in torch_keys.reference(name, 3)]
    assert sorted(back) == sorted(keys)
    for key, array in back.items():
        if key.endswith("num_batches_tracked"):
            assert array.dtype == np.int64 and array.shape == () and array == 0
        else:
            np.testing.assert_array_equal(array, state_dict[key])
            assert array.flags.c_contiguous


def test_tree_of_the_model(small):
    variables = pretrained.from_torch(SMALL, small, width=WIDTH)
    model = models.create(SMALL, 3, width=WIDTH)
    want = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3)))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(want))


def test_layouts_element_by_element(small):
    variables = pretrained.from_torch(SMALL, small, width=WIDTH)
    kernel = variables["params"]["layer2_0"]["conv1"]["kernel"]
    weight = small["layer2.0.conv1.0.weight"]
    assert kernel[2, 0, 1, 1, 3] == weight[3, 1, 2, 0, 1]
    assert variables["params"]["fc"]["kernel"][5, 2] == small["fc.weight"][2, 5]
    stats, affine = variables["batch_stats"]["stem"]["bn"], variables["params"]["stem"]["bn"]
    for ours, theirs in (
        (affine["scale"], "weight"),
        (affine["bias"], "bias"),
        (stats["mean"], "running_mean"),
        (stats["var"], "running_var"),
    ):
        np.testing.assert_array_equal(ours, small[f"stem.1.{theirs}"])


def test_a_classifier_that_is_a_convolution_in_torch():
    state_dict = draw("s3d", width=WIDTH)
    assert state_dict["classifier.1.weight"].shape == (3, 32, 1, 1, 1)
    kernel = pretrained.from_torch("s3d", state_dict, width=WIDTH)["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, state_dict["classifier.1.weight"][:, :, 0, 0, 0].T)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state", "model"])
def test_wrapped_prefixed_and_counted(small, wrapper):
    inner = {f"module.{key}": value for key, value in small.items()}
    inner["module.stem.1.num_batches_tracked"] = np.array(7)
    checkpoint = {"epoch": 3, "arch": "r3d", wrapper: inner, "optimizer": {"lr": 0.1}}
    plain = pretrained.from_torch(SMALL, small, width=WIDTH)
    wrapped = pretrained.from_torch(SMALL, checkpoint, width=WIDTH)
    jax.tree.map(np.testing.assert_array_equal, wrapped, plain)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_float_types_become_float32(small, dtype):
    cast = {key: value.astype(dtype) for key, value in small.items()}
    variables = pretrained.from_torch(SMALL, cast, width=WIDTH)
    bias = variables["params"]["fc"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, cast["fc.bias"].astype(np.float32))


def test_kept_head_says_nothing(small):
    lines = []
    pretrained.from_torch(SMALL, small, num_classes=3, log=lines.append, width=WIDTH)
    assert lines == []


def test_other_number_of_classes_makes_a_new_head(small):
    lines = []
    variables = pretrained.from_torch(SMALL, small, 500, log=lines.append, width=WIDTH)
    assert lines == [
        "r3d_10: the checkpoint's classifier is for 3 classes; a new one for 500 is made"
    ]
    fc = variables["params"]["fc"]
    assert fc["kernel"].shape == (16, 500) and fc["kernel"].dtype == np.float32
    # 8,000 draws from N(0, 0.01^2): their standard deviation is known to 1 %.
    assert abs(fc["kernel"].std() - 0.01) < 5e-4 and not fc["bias"].any()
    kept = pretrained.from_torch(SMALL, small, width=WIDTH)
    for tree in (variables, kept):
        del tree["params"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, variables, kept)


def test_a_new_head_follows_its_key(small):
    def head(seed):
        tree = pretrained.from_torch(
            SMALL, small, 5, rng=jax.random.key(seed), log=lambda line: None, width=WIDTH
        )
        return tree["params"]["fc"]["kernel"]

    np.testing.assert_array_equal(head(1), head(1))
    assert not np.array_equal(head(1), head(2))


def test_checkpoint_without_head(small):
    bare = {key: value for key, value in small.items() if not key.startswith("fc.")}
    lines = []
    variables = pretrained.from_torch(SMALL, bare, 5, log=lines.append, width=WIDTH)
    assert lines == ["r3d_10: the checkpoint's classifier is absent; a new one for 5 is made"]
    assert variables["params"]["fc"]["kernel"].shape == (16, 5)
    with pytest.raises(UserError, match=r"has no fc\.weight to tell the number of classes by"):
        pretrained.from_torch(SMALL, bare, width=WIDTH)


def test_every_misfit_is_listed(small):
    broken = dict(small)
    del broken["layer3.0.conv1.0.weight"], broken["fc.bias"]
    broken["fc.extra"] = np.zeros(2, np.float32)
    broken["stem.0.weight"] = broken["stem.0.weight"][..., :5]
    for num_classes in (None, 3, 9):
        with pytest.raises(UserError) as error:
            pretrained.from_torch(SMALL, broken, num_classes, width=WIDTH)
        assert str(error.value).splitlines() == [
            "the state dict does not fit r3d_10 in the names of torchvision; is it of this model?",
            "  missing: layer3.0.conv1.0.weight (8, 4, 3, 3, 3)",
            "  missing: fc.bias (3,)",
            "  unknown: fc.extra (2,)",
            "  of another shape: stem.0.weight is (2, 3, 3, 7, 5), expected (2, 3, 3, 7, 7)",
        ]


def test_shortcut_is_hinted_at():
    without = draw("resnet3d_10", width=WIDTH, shortcut="A")
    with pytest.raises(
        UserError, match=r"--config.model.shortcut=A.*\n  missing: layer2.0.downsample.0"
    ):
        pretrained.from_torch("resnet3d_10", without, width=WIDTH)
    pretrained.from_torch("resnet3d_10", without, width=WIDTH, shortcut="A")


def test_of_another_model(small):
    with pytest.raises(UserError, match=r"has no fc\.weight.*empty"):
        pretrained.from_torch(SMALL, {})
    with pytest.raises(UserError, match=r"no blocks\.5\.proj\.weight.*its keys: fc\.bias, "):
        pretrained.from_torch("x3d_s", small)


def test_no_numbers(small):
    with pytest.raises(UserError, match=r"fc\.bias cannot be read as numbers"):
        pretrained.from_torch(SMALL, small | {"fc.bias": np.array(["a", "b", "c"])}, width=WIDTH)


def test_a_model_without_torch_names():
    for function in (pretrained.from_torch, pretrained.to_torch):
        with pytest.raises(UserError, match="no PyTorch implementation of shufflenet2p1d.*r3d_18"):
            function("shufflenet2p1d", {})
    with pytest.raises(UserError, match="unknown model 'r3d18'"):
        pretrained.from_torch("r3d18", {})


def test_exporting_variables_that_do_not_fit(small):
    variables = pretrained.from_torch(SMALL, small, width=WIDTH)
    flat = traverse_util.flatten_dict(variables)
    del flat["batch_stats", "stem", "bn", "var"]
    flat["params", "more", "kernel"] = np.zeros((1, 2))
    with pytest.raises(UserError) as error:
        pretrained.to_torch(SMALL, traverse_util.unflatten_dict(flat), width=WIDTH)
    assert str(error.value).splitlines()[1:] == [
        "  missing: batch_stats/stem/bn/var (2,)",
        "  unknown: params/more/kernel (1, 2)",
    ]
    with pytest.raises(UserError, match="of another shape: params/stem/conv/kernel is"):
        pretrained.to_torch(SMALL, variables)
    with pytest.raises(UserError, match="no params/fc/bias"):
        pretrained.to_torch(SMALL, {"params": {}})


@pytest.mark.parametrize("name", NAMED)
def test_preprocessing_is_known_where_weights_are(name):
    recipe = pretrained.preprocessing(name)
    assert recipe.source and recipe.frames > 0 and recipe.stride > 0
    sides = (recipe.resize,) if isinstance(recipe.resize, int) else recipe.resize
    assert recipe.crop <= min(sides)
    assert all(0 < m < 1 for m in recipe.mean) and all(0 < s < 1 for s in recipe.std)


def test_preprocessing_of_torchvision():
    recipe = pretrained.preprocessing("r2plus1d_18")
    assert recipe.mean == (0.43216, 0.394666, 0.37645)
    assert recipe.std == (0.22803, 0.22145, 0.216989)
    assert (recipe.resize, recipe.crop) == ((128, 171), 112)
    assert (recipe.frames, recipe.stride, recipe.frame_rate) == (16, 1, 15)
    wide = pretrained.preprocessing("s3d")
    assert (wide.resize, wide.crop, wide.frames) == ((256, 256), 224, 128)
    assert (recipe.clips, recipe.crops, wide.clips, wide.crops) == (5, 1, 1, 1)


def test_the_first_3d_resnets_took_pixels_of_0_to_255_minus_a_mean():
    """In pixels of 0 to 255: what they get is the pixel minus the mean of ActivityNet."""
    pixels, mean = np.array([0.0, 128.0, 255.0]), np.array([114.7748, 107.7354, 99.4750])
    first = pretrained.preprocessing("resnet3d_18", shortcut="A", width=1.0)
    np.testing.assert_allclose((pixels / 255 - first.mean) / first.std, pixels - mean)
    later = pretrained.preprocessing("resnet3d_18")
    assert later == pretrained.preprocessing("resnet3d_18", shortcut="B")
    assert (later.mean, later.std) == ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
    same = ("resize", "crop", "frames", "stride", "frame_rate", "antialias")
    assert [getattr(first, field) for field in same] == [112, 112, 16, 1, None, True]
    assert [getattr(later, field) for field in same] == [112, 112, 16, 1, None, True]
    assert "2018" in first.source and "2018" not in later.source


@pytest.mark.parametrize(
    "name,antialias,clips,crops",
    [  # Pillow smooths when it shrinks, torch.nn.functional.interpolate does not.
        ("mc3_18", False, 5, 1),
        ("x3d_m", False, 10, 3),
        ("slowfast_r50", False, 10, 3),
        ("ircsn_101", False, 10, 3),
        ("ipcsn_152", False, 10, None),
        ("resnet3d_50", True, None, None),
        ("mobilenetv2_x1", True, None, None),
        ("shufflenetv2_x0_25", True, None, None),
    ],
)
def test_resizing_and_clips_by_source(name, antialias, clips, crops):
    recipe = pretrained.preprocessing(name)
    assert (recipe.antialias, recipe.clips, recipe.crops) == (antialias, clips, crops)


def test_no_preprocessing_without_weights():
    with pytest.raises(UserError, match="no preprocessing is known for shufflenet2p1d"):
        pretrained.preprocessing("shufflenet2p1d")
    with pytest.raises(UserError, match=re.escape("unknown model 'r3d18'")):
        pretrained.preprocessing("r3d18")
