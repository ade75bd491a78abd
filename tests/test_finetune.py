"""What is frozen stays bit for bit and costs nothing; groups move at their own rate."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from skd_jax import augment, finetune, methods, optim, parallel, settings, step
from skd_jax.errors import UserError
from skd_jax.models.classifier import VideoClassifier
from skd_jax.optim import OptimSettings
from skd_jax.step import StepSettings
from tests.fakes import (
    Normed,
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
)

CROP = augment.AugmentSettings(crop=4)
CLIP = (2, 4, 4, 3)
BLOCK = {"conv1": {"kernel": 1}, "bn1": {"scale": 1, "bias": 1}}
PARAMS = {
    "model": {"stem": BLOCK, "layer1_0": BLOCK, "layer2_0": BLOCK, "fc": {"kernel": 1, "bias": 1}},
    "projector": {"linear1": {"kernel": 1}, "bn1": {"scale": 1, "bias": 1}},
}


def names(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, leaf in leaves if leaf}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", {"model/stem/conv1/kernel", "model/stem/bn1/scale", "model/stem/bn1/bias"}),
        ("layer?_0/conv1", {"model/layer1_0/conv1/kernel", "model/layer2_0/conv1/kernel"}),
        ("layer1", set()),
        ("layer1*/kernel", {"model/layer1_0/conv1/kernel"}),
        ("head", {"model/fc/kernel", "model/fc/bias"}),
        ("backbone", {n for n in names(PARAMS) if n.startswith("model/") and "/fc/" not in n}),
        ("*", {n for n in names(PARAMS) if n.startswith("model/")}),
        ("model/fc/bias", {"model/fc/bias"}),
        ("projector", {n for n in names(PARAMS) if n.startswith("projector/")}),
        ("projector/*bn*", {"projector/bn1/scale", "projector/bn1/bias"}),
    ],
)
def test_patterns(pattern, expected):
    assert names(finetune.select(PARAMS, pattern)) == expected


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(UserError) as error:
        finetune.check(PARAMS, ("stem", "layer1"), "finetune.freeze")
    assert "config.finetune.freeze: no parameter matches 'layer1'; nearest: " in str(error.value)
    assert "layer1_0" in str(error.value)
    assert "outermost names: fc, layer1_0, layer2_0, projector, stem" in str(error.value)


def test_all_frozen_is_a_mistake():
    variables = {"params": PARAMS, "batch_stats": {}}
    with pytest.raises(UserError, match="leaves no parameter to train"):
        finetune.frozen(variables, ("model", "projector"), batch_norm=False)


@pytest.mark.parametrize("text", ["backbone", "backbone=", "=2", "stem=0", "stem=-1", "stem=inf"])
def test_groups_that_are_none(text):
    with pytest.raises(UserError, match=r"config.finetune.lr_groups: .* is no PATTERN=FACTOR"):
        finetune.parse_groups(f"head=1,{text}", "finetune.lr_groups")


def test_lists_of_the_command_line():
    assert finetune.parse_names(" stem, layer1* ,") == ("stem", "layer1*")
    assert finetune.parse_groups("*=0.1, head = 1", "k") == (("*", 0.1), ("head", 1.0))


class OneConvolution(VideoClassifier):
    """A family of one convolution."""

    @nn.compact
    def __call__(self, clips, train: bool = False):
        x, conv, norm = self.prepare(clips, train)
        x = nn.tanh(norm(name="bn")(conv(6, (1, 3, 3), name="conv")(x)))
        return self.classify(x.mean((1, 2, 3)), (x,), train)


def start(method, how, tx):
    state = step.create_state(method, tx, jax.random.key(0), CLIP, how)
    return jax.tree.map(np.asarray, state)  # the step donates what it is given


def run(method, how, tx, before, steps=1, replicas="pmap"):
    """(state, last metrics) after some steps on one batch."""
    devices = parallel.create(replicas)
    train = devices.train(
        functools.partial(step.train_step, method=method, tx=tx, augmentation=CROP, settings=how)
    )
    state = devices.put(before)
    for _ in range(steps):
        state, metrics = train(state, devices.shard(pixel_batch()))
    return devices.get(state), devices.get(metrics)


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(("replicas", "accumulate"), [("pmap", 1), ("shard_map", 2)])
def test_frozen_parameters_stay_and_cost_nothing(replicas, accumulate):
    """With weight decay, momentum and averaged weights."""
    method = methods.create("supervised", Normed(), views=2)
    rule = OptimSettings("adamw", learning_rate=0.1, weight_decay=0.5, schedule="constant")
    tx = optim.optimiser(rule, 10)
    how = StepSettings(10, accumulate=accumulate, ema_decay=0.9, freeze=("stem",))
    before = start(method, how, tx)
    sizes = [leaf.size for leaf in jax.tree.leaves(before.opt_state) if leaf.ndim]
    head_and_norm = 6 * 4 + 4 + 6 + 6
    assert sum(sizes) == 2 * head_and_norm  # Adam's two moments
    after, _ = run(method, how, tx, before, steps=3, replicas=replicas)
    for params in (after.params, after.ema["params"]):
        same(params["model"]["stem"], before.params["model"]["stem"])
        assert np.all(params["model"]["fc"]["kernel"] != before.params["model"]["fc"]["kernel"])
    assert jax.tree.structure(after) == jax.tree.structure(before)


def test_norm_and_clipping_count_what_is_trained():
    method = methods.create("supervised", Normed(), views=2)
    sgd = optax.sgd(1.0)
    whole = start(method, StepSettings(10), sgd)
    after, metrics = run(method, StepSettings(10), sgd, whole)
    gradient = jax.tree.map(np.subtract, whole.params, after.params)["model"]
    part = {name: tree for name, tree in gradient.items() if name != "stem"}
    norm = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(part)))
    assert norm < 0.95 * metrics["grad_norm"]

    rule = OptimSettings(
        learning_rate=1.0, momentum=0, weight_decay=0, schedule="constant", clip_norm=0.01
    )
    tx, how = optim.optimiser(rule, 10), StepSettings(10, freeze=("stem",))
    before = start(method, how, tx)
    after, metrics = run(method, how, tx, before)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    moved = jax.tree.map(np.subtract, before.params, after.params)["model"]
    for name in ("bn", "fc"):
        jax.tree.map(
            lambda got, g: np.testing.assert_allclose(got, 0.01 / norm * g, rtol=1e-2, atol=1e-6),
            moved[name],
            gradient[name],
        )


def test_freezing_saves_the_gradients_of_the_weights():
    method = methods.create("supervised", Normed(width=64), views=2)
    tx = optax.sgd(1.0)

    def operations(*freeze):
        how = StepSettings(10, freeze=freeze)
        train = functools.partial(
            step.train_step, method=method, tx=tx, augmentation=CROP, settings=how
        )
        return jax.jit(train).lower(start(method, how, tx), pixel_batch()).cost_analysis()["flops"]

    inputs, clips = 2 * 4 * 4 * 3, 16
    assert operations() - operations("stem") > 1.9 * inputs * 64 * clips


def test_frozen_batch_norm_in_training_is_that_of_evaluation():
    """Statistics, scale and bias of the classifier stay; the projector's layers are trained."""
    model = OneConvolution(4, freeze_batch_norm=True)
    method = methods.create("skd_srl", model, projector_out=8, predictor_hidden=4)
    tx, how = optax.sgd(0.1), StepSettings(10, ema_decay=0.9)
    before = start(method, how, tx)
    rng = np.random.default_rng(0)
    stats = jax.tree.map(
        lambda x: rng.uniform(0.1, 2, x.shape).astype(np.float32), before.batch_stats["model"]
    )
    before = before.replace(batch_stats=before.batch_stats | {"model": stats})
    before = before.replace(ema=before.variables)
    clips = rng.normal(size=(3, *CLIP)).astype(np.float32)
    trained, updated = model.apply(
        {"params": before.params["model"], "batch_stats": stats},
        clips,
        train=True,
        mutable=["batch_stats"],
    )
    np.testing.assert_allclose(
        trained.logits, method.logits(before.variables, clips), rtol=1e-5, atol=1e-6
    )
    same(updated["batch_stats"], stats)

    after, _ = run(method, how, tx, before)
    for variables in (after.variables, after.ema):
        same(variables["batch_stats"]["model"], stats)
        same(variables["params"]["model"]["bn"], before.params["model"]["bn"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after.variables, before.variables)
    assert moved["params"]["model"]["conv"]["kernel"]
    assert not any(jax.tree.leaves(moved["batch_stats"]["model"]))
    assert all(jax.tree.leaves(moved["batch_stats"]["projector"]))
    assert all(jax.tree.leaves(moved["params"]["predictor"]))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_group_moves_as_the_whole_would_at_its_own_rate(name):
    """The last pattern that matches counts; other networks keep the full rate."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda _: rng.normal(size=(3, 2)).astype(np.float32), PARAMS)
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape), params) for _ in range(3)]

    def updates(rate, groups=(), constant=()):
        rule = OptimSettings(name, learning_rate=rate, weight_decay=0.1, schedule="constant")
        tx = optim.optimiser(rule, 10, constant, groups)
        state = tx.init(params)
        for gradient in grads:
            got, state = tx.update(gradient, state, params)
        return got

    groups = (("backbone", 0.1), ("layer2*", 0.5))
    got, full = updates(0.2, groups, ("projector",)), updates(0.2)
    slow, middle = updates(0.02), updates(0.1)
    want = full["model"] | {
        "stem": slow["model"]["stem"],
        "layer1_0": slow["model"]["layer1_0"],
        "layer2_0": middle["model"]["layer2_0"],
    }
    want = {"model": want, "projector": full["projector"]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, want)


def test_the_config_reaches_all_parts():
    from configs import common

    config = common.base_config().to_dict()
    config["model"] |= {"name": "r3d_10", "width": 0.0625}
    config["finetune"] |= {
        "freeze": "stem, layer1*",
        "freeze_batch_norm": True,
        "lr_groups": "backbone=0.1",
    }
    settings.check(config)
    assert settings.loop(config, 10).freeze == ("stem", "layer1*")
    assert settings.method(config, 5).freezes_batch_norm
    assert settings.finetuning(config).lr_groups == (("backbone", 0.1),)
    config["finetune"]["freeze"] = "stem,layr1*"
    with pytest.raises(UserError, match="config.finetune.freeze: no parameter matches 'layr1"):
        settings.check(config)
    config["finetune"] = {"freez": ""}
    with pytest.raises(UserError, match="did you mean 'finetune.freeze'"):
        settings.check(config)


def test_a_config_without_the_section_trains_everything():
    assert settings.finetuning({}) == finetune.FinetuneSettings()
