"""Methods with a frozen teacher against NumPy: their losses, and where gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skd_jax import losses, methods, parallel, step
from skd_jax.errors import UserError
from skd_jax.methods import base, teacher_student
from skd_jax.models.csn import CSN
from skd_jax.models.renormalised import Renormalised, renormalised
from tests.fakes import (
    Linear,
    kl,
    log_softmax,
    quick_compilation,  # noqa: F401  a fixture
    variables_of,
)
from tests.methods import teachers
from tests.methods.teachers import BATCH, STUDENT, TEACHER, both, create, start, term_gradients
from tests.models.families import draw
from tests.models.test_windows import average, linear

NAMES = [name for name in methods.names() if methods.takes_teacher(name)]
PLAIN = ("at", "fitnet", "icsd", "kd", "nfd", "pkt", "rkd", "sp", "srd")
CRD = {"negatives": 8, "features": 4}


def made(name, **options):
    if name == "tf_kd_self":
        options = {"teacher": STUDENT, **options}
    return create(name, **((CRD if name == "crd" else {}) | options))


def cross_entropy(logits, smoothing=0.0):
    target = (1 - smoothing) * np.eye(4)[BATCH["label"]] + smoothing / 4
    return -(target * log_softmax(logits)).sum(-1).mean()


def pool(maps):
    b, t, h, w, c = maps.shape
    return maps.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def connected(variables, name, maps, relu):
    """1x1x1 convolution and BatchNorm of the batch, float64."""
    params = variables["params"][name]
    x = maps @ np.asarray(params["conv"]["kernel"], np.float64)[0, 0, 0]
    x = (x - x.mean((0, 1, 2, 3))) / np.sqrt(x.var((0, 1, 2, 3)) + 1e-5)
    x = x * params["bn"]["scale"] + params["bn"]["bias"]
    return np.maximum(x, 0) if relu else x


def standard(x):
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6)


def matrix(maps, fc):
    p = (maps @ np.asarray(fc["kernel"], np.float64) + fc["bias"]).reshape(len(maps), -1, 4)
    log = log_softmax(p.swapaxes(1, 2))
    return (np.exp(log)[:, None] * (log[:, None] - log[:, :, None])).sum(-1)


def attention(s, t):
    def of(x):
        x = np.square(x).mean(-1).reshape(len(x), -1)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    return np.square(of(s) - of(t)).mean()


def parts(name, variables, state, student, teacher):
    """The method's own parts of the loss, as its docstring defines them."""
    if name == "at":
        each = [attention(s, t) for s, t in zip(student.maps, teacher.maps, strict=True)]
        return {"at": 8 * sum(each)}  # the last maps have 2 x 2 x 2 positions
    if name in ("fitnet", "nfd"):
        own = connected(variables, "regressor0", student.maps[1], relu=name == "fitnet")
        own, theirs = (
            (own, teacher.maps[1]) if name == "fitnet" else map(standard, (own, teacher.maps[1]))
        )
        return {"hint": np.square(own - theirs).mean()}
    if name == "srd":
        own = connected(variables, "connector", student.maps[1], relu=True).mean((1, 2, 3))
        fc = state["teacher"]["params"]["fc"]
        judged = own @ np.asarray(fc["kernel"], np.float64) + fc["bias"]
        return {
            "srd": np.square(judged - teacher.logits).mean(),
            "feature": np.square(own - teacher.maps[1].mean((1, 2, 3))).mean(),
        }
    if name == "icsd":
        pair = (
            matrix(student.maps[1], variables["params"]["model"]["fc"]),
            matrix(teacher.maps[1], state["teacher"]["params"]["fc"]),
        )
        return {"icsd": np.square(pair[0] - pair[1]).mean()}
    relation = {
        "pkt": {"pkt": losses.probabilistic_transfer},
        "rkd": {"distance": losses.relational_distances, "angle": losses.relational_angles},
        "sp": {"sp": losses.similarity_preserving},
    }.get(name, {})
    which = (lambda x: x.maps[1]) if name == "sp" else (lambda x: x.embedding)
    pair = [which(x).astype(np.float32) for x in (student, teacher)]
    scale = 1 if name == "rkd" else teachers.VIDEOS
    return {term: scale * np.float64(loss(*pair)) for term, loss in relation.items()}


@pytest.mark.parametrize("anew", [False, True])
def test_srd_pools_as_the_teacher_does(anew):
    """Its windows, 2 x 3 x 3 of 4 x 5 x 7 positions, weigh the border less; the student's map is larger.

    So does a teacher whose clips are normalised anew.
    """
    teacher = CSN(num_classes=4, stage_sizes=(1,), width=0.0625, window=(2, 3, 3))
    if anew:
        teacher = renormalised(teacher, ((0.5,) * 3, (0.25,) * 3), ((0.4,) * 3, (0.2,) * 3))
    clips = np.random.default_rng(0).normal(size=(2, 1, 4, 20, 28, 3)).astype(np.float32)
    given = {"clips": clips, "label": np.array([1, 3]), "index": np.arange(2)}
    method = create("srd", teacher=teacher)
    variables, state = variables_of(method, clips[:1, 0]), {"teacher": draw(teacher, clips[:, 0])}
    _, (metrics, _, _) = jax.jit(lambda v: teachers.loss(method, v, state, given))(variables)
    own = {collection: trees["model"] for collection, trees in variables.items()}
    maps = teachers.outputs(STUDENT, own, clips[:, 0], True).maps[-1]
    taught = teachers.outputs(teacher, state["teacher"], clips[:, 0], False)
    assert maps.shape[1:4] == (4, 10, 14) and taught.maps[-1].shape[1:4] == (4, 5, 7)
    pooled = [
        average(x, (2, 3, 3)).mean((1, 2, 3))
        for x in (connected(variables, "connector", maps, relu=True), taught.maps[-1])
    ]
    judged = linear(pooled[0], state["teacher"]["params"]["fc"])
    want = np.square(judged - taught.logits).mean()
    np.testing.assert_allclose(metrics["loss_srd"], want, rtol=1e-3)
    want = np.square(pooled[0] - pooled[1]).mean()
    np.testing.assert_allclose(metrics["loss_feature"], want, rtol=1e-3)


def weights(method):
    found = {"hint": "beta", "at": "beta", "pkt": "beta", "sp": "beta", "srd": "beta"}
    found |= {"icsd": "beta", "distance": "distance", "angle": "angle"}
    values = {term: getattr(method, name, 0.0) for term, name in found.items()}
    if hasattr(method, "lambda_feature"):
        values["feature"] = method.beta * method.lambda_feature
    return values | {"ce": method.lambda_ce, "kd": method.lambda_kd}


@pytest.mark.parametrize("name", PLAIN)
def test_loss_follows_the_equations(name):
    method = create(name, lambda_kd=0.7, temperature=3.0, label_smoothing=0.1)
    variables, state = start(method)
    value, (metrics, stats, new) = jax.jit(lambda v: teachers.loss(method, v, state))(variables)
    student, teacher = both(variables, state)
    want = {
        "ce": cross_entropy(student.logits, 0.1),
        "kd": 9 * kl(student.logits, teacher.logits, 3.0).mean(),
        **parts(name, variables, state, student, teacher),
    }
    assert {key for key in metrics if key.startswith("loss_")} == {f"loss_{key}" for key in want}
    for key, term in want.items():
        np.testing.assert_allclose(metrics[f"loss_{key}"], term, rtol=2e-3, atol=1e-6, err_msg=key)
    total = sum(weights(method)[key] * term for key, term in want.items())
    np.testing.assert_allclose(value, total, rtol=2e-3)
    assert value == metrics["loss"] and value.dtype == jnp.float32
    right = [x.logits.argmax(-1) == BATCH["label"] for x in (student, teacher)]
    np.testing.assert_allclose([metrics["top1"], metrics["teacher_top1"]], np.mean(right, axis=1))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, new, state)


@pytest.mark.parametrize("name", ["fitnet", "nfd", "sp"])
def test_stages_are_summed(name):
    method = create(name, stages="1,2")
    variables, state = start(method)
    _, (metrics, _, _) = jax.jit(lambda v: teachers.loss(method, v, state))(variables)
    student, teacher = both(variables, state)
    each = []
    for i, (own, theirs) in enumerate(zip(student.maps, teacher.maps, strict=True)):
        if name == "sp":
            gram = [x.reshape(len(x), -1) @ x.reshape(len(x), -1).T for x in (own, theirs)]
            rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in gram]
            each.append(np.square(rows[0] - rows[1]).sum() / len(own))
            continue
        own = connected(variables, f"regressor{i}", own, relu=name == "fitnet")
        pair = (own, theirs) if name == "fitnet" else map(standard, (own, theirs))
        each.append(np.square(np.subtract(*pair)).mean())
    assert min(each) > 1e-4
    got = metrics["loss_sp" if name == "sp" else "loss_hint"]
    np.testing.assert_allclose(got, sum(each), rtol=2e-3)


def test_a_run_of_the_same_network_teaches_as_any_other():
    method = made("tf_kd_self", temperature=3.0)
    variables, _ = start(method)
    state = {"teacher": teachers.frozen(STUDENT, seed=7)}
    value, (metrics, _, _) = jax.jit(lambda v: teachers.loss(method, v, state))(variables)
    own = {collection: trees["model"] for collection, trees in variables.items()}
    clips = BATCH["clips"][:, 0]
    student = teachers.outputs(STUDENT, own, clips, True)
    teacher = teachers.outputs(STUDENT, state["teacher"], clips, False)
    kd = 9 * kl(student.logits, teacher.logits, 3.0).mean()
    np.testing.assert_allclose(metrics["loss_kd"], kd, rtol=2e-3)
    np.testing.assert_allclose(value, 0.1 * cross_entropy(student.logits) + 0.9 * kd, rtol=2e-3)


def own_term(name, student, teacher):
    """The weighted term of a method whose terms need the outputs alone."""
    seen = teacher_student.Seen(student, teacher, {}, {}, BATCH, {}, None, None, None)
    ((weight, value),) = create(name).terms(seen)[0].values()
    return weight * value


def repeated(outputs, batch=1, time=1):
    return base.Outputs(
        *(np.concatenate([x] * batch) for x in outputs[:2]),
        tuple(np.concatenate([np.concatenate([x] * batch)] * time, axis=1) for x in outputs.maps),
    )


@pytest.mark.parametrize("name,published", [("at", 1000), ("pkt", 30000), ("sp", 3000)])
def test_published_weights_hold_for_any_size_of_maps_and_batch(name, published):
    """RepDistiller's value at its sizes, and the same where there are more positions or examples."""
    rng = np.random.default_rng(0)
    batch, sizes = (3, (32, 16, 8)) if name == "at" else (64, (2,))
    student, teacher = (
        base.Outputs(
            np.zeros((batch, 4)),
            rng.random((batch, channels)).astype(np.float32),
            tuple(rng.random((batch, 1, n, n, channels)).astype(np.float32) for n in sizes),
        )
        for channels in (3, 5)
    )
    if name == "at":
        plain = sum(attention(s, t) for s, t in zip(student.maps, teacher.maps, strict=True))
    else:
        plain = {
            "pkt": lambda: losses.probabilistic_transfer(student.embedding, teacher.embedding),
            "sp": lambda: losses.similarity_preserving(student.maps[-1], teacher.maps[-1]),
        }[name]()
    got = own_term(name, student, teacher)
    np.testing.assert_allclose(got, published * plain, rtol=1e-3)
    larger = (
        repeated(x, **({"time": 3} if name == "at" else {"batch": 2})) for x in (student, teacher)
    )
    np.testing.assert_allclose(own_term(name, *larger), got, rtol=1e-3)


def test_attention_of_maps_of_different_size_is_that_of_the_pooled():
    rng = np.random.default_rng(0)
    sizes = (4, 2), (2, 2)
    student, teacher = (
        base.Outputs(None, None, tuple(rng.random((3, 2, n, n, 5)).astype(np.float32) for n in of))
        for of in sizes
    )
    first = attention(pool(student.maps[0]), teacher.maps[0])
    want = 15.625 * 8 * (first + attention(student.maps[1], teacher.maps[1]))
    np.testing.assert_allclose(own_term("at", student, teacher), want, rtol=1e-4)


TRAINED = {
    "hint": {"model", "regressor0"},
    "srd": {"model", "connector"},
    "feature": {"model", "connector"},
    "crd": {"model", "embed_student", "embed_teacher"},
    "contrast": {"model", "projector"},
    "head": {"teacher_projector"},
    "joint": {"model", "branch0", "branch1"},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_term_trains_its_networks_and_no_others(name):
    method = made(name, lambda_kd=0.5)
    variables, state = start(method)
    for term, by in term_gradients(method, variables, state).items():
        trained = TRAINED.get(term.removeprefix("loss_"), {"model"})
        if (name, term) == ("hsakd", "loss_head"):
            trained = {"teacher_branch0", "teacher_branch1"}
        for network, largest in by.items():
            assert (largest > 1e-6) == (network in trained), (term, network, largest)
            assert largest == 0.0 or network in trained, (term, network, largest)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_reaches_the_teacher_and_it_stays(name):
    method = made(name, lambda_kd=0.5)
    variables, state = start(method)

    def loss(frozen):
        value, (_, _, new) = teachers.loss(method, variables, {**state, "teacher": frozen})
        return value, new["teacher"]

    gradient, after = jax.jit(jax.grad(loss, has_aux=True))(state["teacher"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf), err_msg=str(path))
    jax.tree.map(np.testing.assert_array_equal, after, state["teacher"])


def test_the_deployed_classifier_is_the_students():
    for name in NAMES:
        method = made(name)
        variables, _ = start(method)
        only = {c: {"model": trees["model"]} for c, trees in variables.items()}
        got = method.logits(only, BATCH["clips"][:, 0])
        want = STUDENT.apply({c: t["model"] for c, t in only.items()}, BATCH["clips"][:, 0]).logits
        np.testing.assert_array_equal(got, want)
        assert method.num_views == 1


@pytest.mark.parametrize("name", ["fitnet", "pkt", "sp", "sskd"])
def test_two_replicas_learn_what_one_does_from_all(name):
    """Those that compare examples, and those with networks of their own whose BatchNorm is shared."""
    method = create(name)
    variables, state = start(method)

    def loss(params, state, batch, axis_name=None):
        key, half = jax.random.key(2), jnp.float32(0.5)
        value, (_, stats, _) = method.loss(
            {**variables, "params": params}, batch, state, key, half, axis_name
        )
        return value, stats

    gradient = jax.value_and_grad(loss, has_aux=True)
    want = jax.jit(gradient)(variables["params"], state, BATCH)
    parts = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), BATCH)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0), axis_name="replicas")
    def on_replica(params, state, batch):
        found = gradient(params, state, batch, "replicas")
        return parallel.mean_over_replicas(found, "replicas")

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=2e-3, atol=2e-5 * abs(want[0][0])),
        on_replica(variables["params"], state, parts),
        want,
    )


def test_training_puts_the_teachers_variables_into_the_state():
    method, clip = create("kd"), BATCH["clips"].shape[2:]
    given = teachers.frozen()

    def state(teacher):
        settings = step.StepSettings(total_steps=1)
        return step.create_state(
            method, optax.sgd(0.1), jax.random.key(0), clip, settings, teacher=teacher
        )

    jax.tree.map(np.testing.assert_array_equal, state(given).method_state["teacher"], given)
    template = jax.eval_shape(lambda: state(None))
    assert jax.tree.structure(template.method_state) == jax.tree.structure({"teacher": given})
    with pytest.raises(UserError, match="the teacher's variables do not fit its network"):
        state(teachers.frozen(STUDENT))


def test_without_a_teacher_it_classifies_but_does_not_train():
    method = methods.create("kd", STUDENT)
    with pytest.raises(UserError, match="learns from a teacher; give `teacher`"):
        method.init(jax.random.key(0), BATCH["clips"][:, 0])
    with pytest.raises(UserError, match="'supervised' takes no teacher"):
        methods.create("supervised", STUDENT, teacher=TEACHER)


def test_which_stages_are_compared():
    assert teacher_student.parse_stages("2, 3:4,-1") == ((2, 2), (3, 4), (-1, -1))
    one = base.Outputs(None, None, ("a", "b"))
    two = base.Outputs(None, None, ("c", "d", "e"))
    assert teacher_student.stage_maps("1:2,-1", one, two) == [("a", "d"), ("b", "e")]
    assert teacher_student.stage_maps("", one, one) == [("a", "a"), ("b", "b")]
    with pytest.raises(UserError, match="the student has 2 stages and the teacher 3"):
        teacher_student.stage_maps("", one, two)
    with pytest.raises(UserError, match="the student has stages 1 to 2, no 3"):
        teacher_student.stage_maps("3", one, two)


def test_maps_of_different_size_are_pooled():
    """The student's first map has four times the positions of the teacher's second."""
    method = create("fitnet", stages="1:2", relu=False)
    variables, state = start(method)
    _, (metrics, _, _) = jax.jit(lambda v: teachers.loss(method, v, state))(variables)
    student, teacher = both(variables, state)
    own = connected(variables, "regressor0", pool(student.maps[0]), relu=False)
    want = np.square(own - teacher.maps[1]).mean()
    np.testing.assert_allclose(metrics["loss_hint"], want, rtol=1e-3)


def test_clips_are_normalised_anew_for_the_teacher():
    rng = np.random.default_rng(0)
    pixels = rng.random((2, 2, 4, 4, 3))
    mean, std, own_mean, own_std = rng.random((4, 3)) + 0.2
    module = renormalised(TEACHER, (mean, std), (own_mean, own_std))
    assert renormalised(TEACHER, (mean, std), (list(mean), tuple(std))) is TEACHER
    trees = teachers.frozen()
    assert jax.tree.structure(teachers.frozen(module)) == jax.tree.structure(trees)
    got = module.apply(trees, ((pixels - mean) / std).astype(np.float32), train=False)
    want = TEACHER.apply(trees, ((pixels - own_mean) / own_std).astype(np.float32), train=False)
    np.testing.assert_allclose(got.logits, want.logits, rtol=1e-4, atol=1e-5)
    assert isinstance(module, Renormalised) and hash(module) == hash(module.clone())


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("kd", {"temperature": 0}, "method.temperature must be positive, got 0"),
        ("kd", {"lambda_ce": -1}, "method.lambda_ce must be 0 or more, got -1"),
        ("kd", {"lambda_kd": 0}, "nothing is learnt from the teacher"),
        ("tf_kd_self", {"teacher": TEACHER}, "must be a run of config.model itself"),
        ("fitnet", {"beta": -1}, "method.beta must be 0 or more"),
        ("fitnet", {"stages": "two"}, "'two' is no stage; write numbers from 1"),
        ("at", {"stages": "0"}, "'0' is no stage"),
        ("rkd", {"angle": -1}, "method.distance and method.angle must be 0 or more"),
        ("at", {"beta": -1}, "method.beta must be 0 or more"),
        ("pkt", {"beta": -1}, "method.beta must be 0 or more"),
        ("srd", {"lambda_feature": -1}, "method.lambda_feature must be 0 or more"),
        ("sskd", {"lambda_turned": -1}, "method.lambda_turned must be 0 or more"),
        ("crd", {"negatives": 0}, "method.negatives must be at least 1, got 0"),
        ("crd", {"contrast_temperature": 0}, "contrast_temperature must be positive"),
        ("crd", {"momentum": 1.0}, r"method.momentum must be in \[0, 1\), got 1.0"),
        ("icsd", {"map_temperature": 0}, "map_temperature must be positive"),
        ("sskd", {"keep_contrast": 2}, r"method.keep_contrast must be in \[0, 1\], got 2"),
        ("hsakd", {"head_share": -1}, r"method.head_share must be in \[0, 1\], got -1"),
    ],
)
def test_wrong_hyper_parameters_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        create(name, **options)


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("fitnet", {"stages": "3"}, "the student has stages 1 to 2, no 3"),
        ("srd", {"teacher": Linear(num_classes=4)}, "classifier does not sit on its last map"),
        ("hsakd", {"teacher": Linear(num_classes=4)}, "the student has 2, the teacher 1"),
    ],
)
def test_networks_that_do_not_fit_the_method(name, options, message):
    method = create(name, **options)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(method.init, jax.random.key(0), BATCH["clips"][:, 0])


def test_a_map_of_one_position_cannot_be_normalised():
    method = create("nfd")
    with pytest.raises(UserError, match="a map of a single position"):
        jax.eval_shape(method.init, jax.random.key(0), np.zeros((1, 1, 2, 2, 3), np.float32))
