"""Models by name: all are there and counted, options, and mistakes."""

import importlib
import pkgutil

import pytest

from skd_jax import models
from skd_jax.errors import UserError


def test_every_model_has_an_asserted_count():
    """In the tests of its family, as COUNTS: {(name, classes, ...): parameters}."""
    for family in models.FAMILIES:
        tests = importlib.import_module(f"tests.models.test_{family.__name__.rpartition('.')[2]}")
        assert {name for name, *_ in tests.COUNTS} == set(family.MODELS)
        assert all(tests.COUNTS.values())
    assert {name for family in models.FAMILIES for name in family.MODELS} == set(models.names())


def test_every_file_with_models_is_registered():
    found = {
        info.name
        for info in pkgutil.iter_modules(models.__path__)
        if hasattr(importlib.import_module(f"{models.__name__}.{info.name}"), "MODELS")
    }
    assert found == {family.__name__.rpartition(".")[2] for family in models.FAMILIES}


def test_two_families_cannot_share_a_name():
    table = {"r3d_18": models.describe("r3d_18")}
    with pytest.raises(ValueError, match="two model families have the name.* r3d_18"):
        models.join([table, {"other": table["r3d_18"]}, table])


def test_every_model_says_where_it_comes_from_and_its_usual_clip():
    for name in models.names():
        entry = models.describe(name)
        assert entry.source and len(entry.clip) == 3 and min(entry.clip) > 0, name


def test_every_model_can_be_narrowed_and_rematerialised():
    for name in models.names():
        assert {"width", "dtype", "axis_name", "dropout", "remat"} <= set(models.options(name)), (
            name
        )


def test_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="unknown model 'r3d18'; did you mean 'r3d_18'"):
        models.create("r3d18", 5)
    with pytest.raises(UserError, match=f"unknown model 'vgg'.*{models.names()[0]}, "):
        models.create("vgg", 5)


def test_unknown_option_names_the_nearest():
    with pytest.raises(UserError, match="unknown r3d_18 option 'widht'; did you mean 'width'"):
        models.create("r3d_18", 5, widht=0.5)
    with pytest.raises(UserError, match="unknown r3d_18 option 'stage_sizes'"):  # the name fixes it
        models.create("r3d_18", 5, stage_sizes=(1, 1, 1, 1))


@pytest.mark.parametrize("option,value", [("width", 0.0), ("dropout", 1.0), ("dropout", -0.1)])
def test_option_out_of_range_is_named(option, value):
    with pytest.raises(UserError, match=f"option {option} of r3d_18 must .* got {value}"):
        models.create("r3d_18", 5, **{option: value})


def test_unknown_dtype_is_named():
    with pytest.raises(UserError, match="option dtype of r3d_18 must be .* got 'bflaot16'"):
        models.create("r3d_18", 5, dtype="bflaot16")


def test_no_classes():
    with pytest.raises(UserError, match="num_classes must be at least 1; got 0"):
        models.create("r3d_18", 0)


def test_options_are_listed():
    shared = ("axis_name", "dropout", "dtype", "freeze_batch_norm", "remat", "width")
    expected = (*shared, "zero_init_residual")
    assert models.options("r3d_34") == expected
    assert "shortcut" in models.options("resnet3d_50")


def test_defaults_are_what_is_built():
    assert models.defaults("s3d")["dropout"] == 0.2 and models.defaults("r3d_18")["dropout"] == 0.0
    for name in models.names():
        model = models.create(name, 5)
        for option, value in models.defaults(name).items():
            assert getattr(model, option) == value, (name, option)
