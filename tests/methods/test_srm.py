"""SRM's three losses put together against NumPy, what each stage trains, and its hyper-parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skd_jax import finetune, optim, step
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.methods import base
from skd_jax.methods.srm import SRM
from skd_jax.models import Outputs
from skd_jax.models.mobilenetv2 import MobileNetV2
from skd_jax.models.x3d import X3D
from tests.fakes import (
    float_batch,
    kl,
    log_softmax,
    pixel_batch,
    quick_compilation,  # noqa: F401  a fixture
    variables_of,
)

CLASSES = 4


class Maps(nn.Module):
    """Two maps by 1x1x1 convolutions, the second of half the size, with BatchNorm; pooled; linear."""

    widths: tuple[int, int] = (4, 6)
    pool: tuple[int, int, int] = (1, 2, 2)
    num_classes: int = CLASSES
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, clips, train: bool = False):
        maps, x = [], clips
        for number, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, name=f"conv{number}")(x)
            x = nn.BatchNorm(
                not train,
                momentum=0.9,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"bn{number}",
            )(x)
            x = jnp.tanh(x)
            if number:
                x = nn.avg_pool(x, self.pool, self.pool)
            maps.append(x)
        embedding = x.mean((1, 2, 3), dtype=jnp.float32)
        return Outputs(nn.Dense(self.num_classes, name="fc")(embedding), embedding, tuple(maps))


STUDENT, TEACHER = Maps(), Maps(widths=(5, 8), pool=(1, 1, 2))
BATCH = float_batch(videos=3, views=1, shape=(2, 4, 4, 3))
CLIPS = BATCH["clips"][:, 0]
TAUGHT = variables_of(base.Method(TEACHER), CLIPS, seed=5)
TAUGHT = base.network(TAUGHT, "model")


def create(**options):
    return SRM(STUDENT, teacher=TEACHER, **{"sparsity": 0.25, "stages": "1,2"} | options)


METHOD = create()


def stage(method, name):
    return next(s.method for s in method.earlier_stages if s.name == name)


def state_of(method, variables):
    return {**method.init_state(variables), "teacher": TAUGHT}


def run(method, variables, state, batch=BATCH, axis_name=None):
    return method.loss(variables, batch, state, jax.random.key(0), jnp.zeros(()), axis_name)


def gradients(method, variables, state):
    def loss(params, state):
        return run(method, {**variables, "params": params}, state)[0]

    return jax.jit(jax.grad(loss))(variables["params"], state)


def code(x, params, active):
    """Similarity, sparse code and reconstruction in NumPy, float64."""
    dictionary = np.asarray(params["dictionary"], np.float64)
    x = np.asarray(x, np.float64)
    similarity = 1 / (1 + np.exp(-(x @ dictionary + float(params["intercept"]))))
    threshold = np.sort(similarity, axis=-1)[..., -active][..., None]
    sparse = np.where(similarity >= threshold, similarity, 0)
    return similarity, sparse, sparse @ dictionary.T


def teacher_maps():
    return TEACHER.apply(TAUGHT, CLIPS, train=False).maps


def test_dictionary_loss():
    method = stage(METHOD, "dictionary")
    variables = variables_of(method, CLIPS)
    loss, (metrics, stats, state) = run(method, variables, state_of(method, variables))
    errors, relative, used = [], [], []
    for number, (x, active) in enumerate(zip(teacher_maps(), (2, 4), strict=True)):
        _, sparse, rebuilt = code(x, variables["params"]["dictionary"][f"map{number}"], active)
        errors.append(((x - rebuilt) ** 2).mean())
        relative.append(errors[-1] / (np.asarray(x, np.float64) ** 2).mean())
        used.append((sparse > 0).any((0, 1, 2, 3)))
    np.testing.assert_allclose(loss, sum(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction_error"], np.mean(relative), rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction_error_2"], relative[1], rtol=1e-4)
    shares = [u.mean() for u in used]
    np.testing.assert_allclose(metrics["atoms_in_use_1"], shares[0], rtol=1e-6)
    np.testing.assert_allclose(metrics["atoms_in_use"], np.mean(shares), rtol=1e-6)
    assert 0 < np.mean(shares) < 1
    for idle, u in zip(state["idle"], used, strict=True):
        np.testing.assert_array_equal(idle, np.where(u, 0, METHOD.usage_window))
    assert jax.tree.all(jax.tree.map(np.array_equal, stats, variables["batch_stats"]))


def test_an_atom_counts_as_in_use_for_the_window():
    method = stage(METHOD, "dictionary")
    variables = variables_of(method, CLIPS)
    state = state_of(method, variables)
    state["idle"] = (jnp.full(10, METHOD.usage_window - 2), jnp.zeros(16, jnp.int32))
    shares = []
    for _ in range(3):
        _, (metrics, _, state) = run(method, variables, state)
        shares.append(float(metrics["atoms_in_use_1"]))
    assert shares[0] == 1.0 and shares[1] < 1.0 and shares[2] == shares[1]


def test_dictionary_trains_the_dictionary_alone():
    method = stage(METHOD, "dictionary")
    variables = variables_of(method, CLIPS)
    got = gradients(method, variables, state_of(method, variables))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(got["dictionary"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got["model"]))
    assert method.fixed == ("model",)


def student_loss(method, variables, state):
    """Both parts in NumPy, from the student's maps in training mode."""
    model = base.network(variables, "model")
    outputs, _ = STUDENT.apply(model, CLIPS, train=True, mutable=["batch_stats"])
    image = pixel = 0.0
    for number, (ours, theirs, active) in enumerate(
        zip(outputs.maps, teacher_maps(), (2, 4), strict=True)
    ):
        name = f"map{number}"
        similarity, _, _ = code(ours, variables["params"]["coder"][name], active)
        _, sparse, _ = code(theirs, state["dictionary"][name], active)
        p, y = similarity.mean((1, 2, 3)), sparse.mean((1, 2, 3))
        image += -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        if (
            sparse.shape[2] == 2 * similarity.shape[2]
        ):  # only the second map of the teacher is higher
            sparse = 0.5 * (sparse[:, :, ::2] + sparse[:, :, 1::2])
        label = sparse.argmax(-1)
        chosen = np.take_along_axis(log_softmax(similarity), label[..., None], axis=-1)
        pixel -= chosen.mean()
    return image, pixel


@pytest.mark.parametrize("labels", ["both", "global", "local"])
def test_student_loss(labels):
    method = stage(create(labels=labels), "student")
    variables = variables_of(method, CLIPS)
    state = state_of(method, variables)
    loss, (metrics, stats, after) = run(method, variables, state)
    image, pixel = student_loss(method, variables, state)
    want = {"both": image + pixel, "global": image, "local": pixel}[labels]
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_image"], 0 if labels == "local" else image, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_pixel"], 0 if labels == "global" else pixel, rtol=1e-4)
    assert 0 <= metrics["pixel_agreement"] <= 1
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    assert jax.tree.all(jax.tree.map(np.array_equal, after, state))


def test_student_needs_no_class_labels_and_trains_all_but_the_classifier():
    method = stage(METHOD, "student")
    variables = variables_of(method, CLIPS)
    state = state_of(method, variables)
    loss, _ = run(method, variables, state)
    without, _ = run(method, variables, state, {"clips": BATCH["clips"]})
    assert loss == without
    got = gradients(method, variables, state)
    fc = got["model"].pop("fc")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fc))
    assert method.fixed == ("model/fc/bias", "model/fc/kernel")
    # A bias before BatchNorm has no effect.
    assert all(
        np.any(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(got)
        if not (path[1].key.startswith("conv") and path[-1].key == "bias")
    )


# Stages of one block each: who follows whom is the same as in the whole networks.
SMALL = {
    "x3d": X3D(CLASSES, width=0.25, stage_sizes=(1, 1, 1)),
    "x3d recomputed": X3D(CLASSES, width=0.25, stage_sizes=(1, 1, 1), remat=True),
    "mobilenetv2": MobileNetV2(CLASSES, width=0.25, stages=(((1, 16, 1, 1),), ((6, 32, 1, 2),))),
}
X3D_HEAD = {"pre_conv", "pre_norm", "post_conv", "fc"}


@pytest.mark.parametrize(
    "name,stages,behind",
    [
        ("x3d", "-3,-2,-1", X3D_HEAD),
        ("x3d recomputed", "1,2", X3D_HEAD | {"layer3_0"}),
        ("mobilenetv2", "-1", {"conv_last", "fc"}),
        ("mobilenetv2", "1:-1", {"conv_last", "fc", "layer2_0"}),
    ],
)
def test_what_no_chosen_map_is_made_of_stays_as_it_is(name, stages, behind):
    """Every parameter of these modules, and none of another."""
    student = SMALL[name]
    method = stage(SRM(student, teacher=TEACHER, stages=stages), "student")
    clips = jnp.zeros((1, 2, 32, 32, 3))
    shapes = jax.eval_shape(lambda: student.init(jax.random.key(0), clips, train=False))
    variables = {"params": {"model": shapes["params"]}, "batch_stats": {}}
    fixed = finetune.frozen(variables, method.fixed, batch_norm=False)["model"]
    assert {m: set(jax.tree.leaves(tree)) for m, tree in fixed.items()} == {
        m: {m in behind} for m in shapes["params"]
    }


def test_weight_decay_leaves_alone_what_no_loss_reaches():
    method = stage(create(stages="1"), "student")
    tx = optim.optimiser(optim.OptimSettings(weight_decay=0.1), 4)
    settings = step.StepSettings(total_steps=4)
    before = step.create_state(
        method, tx, jax.random.key(0), (2, 4, 4, 3), settings, teacher=TAUGHT
    )
    options = {"method": method, "tx": tx, "settings": settings}
    after, _ = jax.jit(
        lambda state: step.train_step(
            state,
            pixel_batch(videos=4, views=1, canvas=4),
            augmentation=AugmentSettings(crop=4),
            **options,
        )
    )(before)
    was, now = before.params["model"], after.params["model"]
    for module in ("conv1", "bn1", "fc"):
        jax.tree.map(np.testing.assert_array_equal, now[module], was[module])
    assert (now["conv0"]["kernel"] != was["conv0"]["kernel"]).any()


@pytest.mark.parametrize("labels,trained", [("global", True), ("local", True)])
def test_each_kind_of_label_trains_the_student(labels, trained):
    method = stage(create(labels=labels), "student")
    variables = variables_of(method, CLIPS)
    got = gradients(method, variables, state_of(method, variables))
    assert np.any(got["model"]["conv0"]["kernel"]) == trained


def test_the_teacher_and_its_dictionary_get_no_gradient():
    for name, method in [("dictionary", None), ("student", None), ("", METHOD)]:
        method = method or stage(METHOD, name)
        variables = variables_of(method, CLIPS)
        state = jax.tree.map(jnp.asarray, state_of(method, variables))
        floats = {k: v for k, v in state.items() if k != "idle"}
        got = jax.grad(
            lambda f, method=method, variables=variables, state=state: run(
                method, variables, {**state, **f}
            )[0]
        )(floats)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(got)), name


def test_distillation_loss():
    method = create(lambda_ce=0.7, lambda_kd=0.3, temperature=5.0)
    variables = variables_of(method, CLIPS)
    loss, (metrics, _, _) = run(method, variables, {"teacher": TAUGHT})
    q = STUDENT.apply(base.network(variables, "model"), CLIPS, train=True, mutable=["batch_stats"])[
        0
    ].logits
    t = TEACHER.apply(TAUGHT, CLIPS, train=False).logits
    ce = -np.take_along_axis(log_softmax(q), BATCH["label"][:, None], axis=-1).mean()
    want = 0.7 * ce + 0.3 * 25 * kl(q, t, 5.0).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_kd"], 25 * kl(q, t, 5.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_ce"], ce, rtol=1e-4)
    got = gradients(method, variables, {"teacher": TAUGHT})
    assert np.any(got["model"]["fc"]["kernel"])


def test_begin_takes_over_dictionary_and_student():
    dictionary, student = (stage(METHOD, name) for name in ("dictionary", "student"))
    left = {"dictionary": variables_of(dictionary, CLIPS, seed=2)}
    variables = variables_of(student, CLIPS, seed=3)
    same, state = student.begin(variables, state_of(student, variables), left)
    assert same is variables
    want = left["dictionary"]["params"]["dictionary"]
    assert jax.tree.all(jax.tree.map(np.array_equal, state["dictionary"], want))
    left["student"] = variables
    begun, _ = METHOD.begin(variables_of(METHOD, CLIPS, seed=4), {"teacher": TAUGHT}, left)
    for collection in ("params", "batch_stats"):
        assert begun[collection].keys() == {"model"}
        want = variables[collection]["model"]
        assert jax.tree.all(jax.tree.map(np.array_equal, begun[collection]["model"], want))


def test_maps_may_be_paired_otherwise():
    method = stage(create(stages="2:1,-1"), "student")
    variables = variables_of(method, CLIPS)
    loss, _ = run(method, variables, state_of(method, variables))
    assert np.isfinite(loss)
    shapes = jax.tree.map(np.shape, variables["params"]["coder"])
    assert shapes["map0"]["dictionary"] == (6, 10) and shapes["map1"]["dictionary"] == (6, 16)


def test_replicas_see_the_batch_of_all():
    """Two replicas of half the batch are one of the whole: loss, statistics, atoms in use."""
    batch = float_batch(videos=4, views=1, shape=(2, 4, 4, 3))
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    for method in (stage(METHOD, "dictionary"), stage(METHOD, "student"), METHOD):
        variables = variables_of(method, CLIPS)
        state = state_of(method, variables)

        def loss(part, axis_name=None, method=method, variables=variables, state=state):
            return run(method, variables, state, part, axis_name)

        one = jax.jit(loss)(batch)
        two = jax.jit(jax.vmap(lambda part, loss=loss: loss(part, "batch"), axis_name="batch"))(
            halves
        )
        np.testing.assert_allclose(np.mean(two[0]), one[0], rtol=1e-5)
        for name, value in one[1][0].items():
            if not name.startswith("reconstruction"):  # a ratio of means
                np.testing.assert_allclose(np.mean(two[1][0][name]), value, rtol=1e-4, err_msg=name)
        for whole, each in zip(*map(jax.tree.leaves, (one[1][1:], two[1][1:])), strict=True):
            np.testing.assert_allclose(each[0], whole, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(each[0], each[1])


@pytest.mark.parametrize("name", ["dictionary", "student"])
def test_a_step_of_an_earlier_stage_keeps_the_states_structure(name):
    """Micro-batches, averaged weights, bfloat16; what the stage leaves as it is."""
    student, teacher = (module.clone(dtype=jnp.bfloat16) for module in (STUDENT, TEACHER))
    method, tx = stage(SRM(student, teacher=teacher, stages="1,2"), name), optax.sgd(0.1)
    settings = step.StepSettings(total_steps=4, accumulate=2, ema_decay=0.9)
    batch = pixel_batch(videos=4, views=1, canvas=4)
    before = step.create_state(
        method, tx, jax.random.key(0), (2, 4, 4, 3), settings, teacher=TAUGHT
    )
    options = {"method": method, "tx": tx, "settings": settings}
    after, metrics = jax.jit(
        lambda state: step.train_step(state, batch, augmentation=AugmentSettings(crop=4), **options)
    )(before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for path, leaf in jax.tree_util.tree_leaves_with_path((after, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32) and np.isfinite(leaf).all(), path
    fixed = before.params["model"] if name == "dictionary" else before.params["model"]["fc"]
    now = after.params["model"] if name == "dictionary" else after.params["model"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, now, fixed)
    jax.tree.map(np.testing.assert_array_equal, after.method_state["teacher"], TAUGHT)


def test_stages_and_shares():
    first, second = METHOD.earlier_stages
    assert (first.name, second.name) == ("dictionary", "student")
    assert first.optim == {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0}
    assert (first.share, second.share, second.optim) == (0.16, 0.37, {})
    assert first.method.earlier_stages == second.method.earlier_stages == ()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"mu": 0}, "method.mu must be positive"),
        ({"sparsity": 0}, "method.sparsity"),
        ({"labels": "pixel"}, "local, global, both"),
        ({"lambda_kd": -0.5}, "method.lambda_kd"),
        ({"temperature": 0}, "method.temperature"),
        ({"dictionary_share": 0.7}, "leave some"),
        ({"usage_window": 0}, "method.usage_window"),
        ({"dictionary_learning_rate": 0}, "method.dictionary_learning_rate"),
        ({"stages": "2,last"}, "'last' is no stage"),
        ({"stages": ""}, "method.stages is empty"),
    ],
)
def test_wrong_hyper_parameters(options, message):
    with pytest.raises(UserError, match=message):
        create(**options)


def test_a_map_that_a_network_lacks_is_named():
    method = stage(create(stages="1:3"), "dictionary")
    with pytest.raises(UserError, match="the teacher has stages 1 to 2, no 3"):
        method.init(jax.random.key(0), CLIPS)
    method = stage(create(stages="-3:1"), "dictionary")
    with pytest.raises(UserError, match="the student has stages 1 to 2, no -3"):
        method.init(jax.random.key(0), CLIPS)
    method = stage(create(mu=0.01), "dictionary")
    with pytest.raises(UserError, match=r"method.mu=0.01 leaves no atom for a map of \d+ channels"):
        method.init(jax.random.key(0), CLIPS)
    with pytest.raises(UserError, match="learns from a teacher"):
        stage(SRM(STUDENT, stages="1"), "dictionary").init(jax.random.key(0), CLIPS)
