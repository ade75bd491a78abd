"""FRSKD against NumPy: its loss from the networks' outputs, its stops, rotations and mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import methods, mixing
from skd_jax.errors import UserError
from skd_jax.models.bifpn import BiFPN
from tests.fakes import (
    Linear,
    float_batch,
    kl,
    quick_compilation,  # noqa: F401  a fixture
)
from tests.methods.staged import (
    BATCH,
    Staged,
    cross_entropy,
    init,
    moved,
    one_pass,
    replicas_agree,
    run,
    term_gradients,
)

STAGES = {"model/layer1", "model/layer2", "model/bn1", "model/bn2"}
MODEL = Staged(channels=(3, 4))
POSITIONS = 8  # of the last map
SMALL = {"width": 1, "depth": 1, "temporal_kernel": 1}
BIFPN = BiFPN(4, width=1, depth=1, kernel_size=(1, 3, 3))


def create(model=MODEL, **options):
    return methods.create("frskd", model, **SMALL | options)


def attention(x):
    energy = (np.asarray(x, np.float64) ** 2).mean(-1).reshape(len(x), -1)
    return energy / np.sqrt((energy**2).sum(-1, keepdims=True))


def transfer(own, refined):
    """Mean over the clips of sum_l AT."""
    return sum(
        ((attention(a) - attention(b)) ** 2).mean() for a, b in zip(own, refined, strict=True)
    )


def test_attention_is_of_what_is_active():
    """Of a network whose maps have negative values too, such as MobileNetV2's linear bottlenecks."""
    model = Staged(channels=(3, 4), rectified=False)
    method = create(model)
    variables = init(method)
    _, (metrics, _, _) = run(method, variables)
    student = one_pass(model, variables, "model", BATCH["clips"][:, 0])
    refined = one_pass(BIFPN, variables, "bifpn", student.maps)
    assert all((x < -0.1).any() for x in student.maps)
    active = [np.maximum(x, 0) for x in student.maps]
    np.testing.assert_allclose(
        metrics["loss_at"], POSITIONS * transfer(active, refined.maps), rtol=1e-3
    )


def passes(variables, clips, bifpn=BIFPN):
    """Both networks' outputs for clips of one view."""
    student = one_pass(MODEL, variables, "model", clips)
    return student, one_pass(bifpn, variables, "bifpn", student.maps)


def check(metrics, want):
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 2, "depth": 2, "temporal_kernel": 3},
        {"alpha": 0.3, "beta": 50.0, "temperature": 2.0},
    ],
    ids=["defaults", "others"],
)
def test_loss_and_statistics_follow_the_equations(options):
    method = create(**options)
    variables = init(method)
    loss, (metrics, stats, state) = run(method, variables)
    moving = dict(variables)
    kernel = (method.temporal_kernel, 3, 3)
    bifpn = BiFPN(4, width=method.width, depth=method.depth, kernel_size=kernel)
    student, teacher = passes(moving, BATCH["clips"][:, 0], bifpn)
    want = {
        "loss_ce": cross_entropy(student.logits, BATCH["label"]),
        "loss_ce_bifpn": cross_entropy(teacher.logits, BATCH["label"]),
        "loss_kd": method.temperature**2
        * kl(student.logits, teacher.logits, method.temperature).mean(),
        "loss_at": POSITIONS * transfer(student.maps, teacher.maps),
        "top1": np.mean(student.logits.argmax(-1) == BATCH["label"]),
        "top1_bifpn": np.mean(teacher.logits.argmax(-1) == BATCH["label"]),
    }
    want["loss"] = (
        want["loss_ce"]
        + want["loss_ce_bifpn"]
        + method.alpha * want["loss_kd"]
        + method.beta * want["loss_at"]
    )
    check(metrics, want)
    assert loss == metrics["loss"] and loss.dtype == jnp.float32 and state == {}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        stats,
        moving["batch_stats"],
    )


def test_targets_are_stopped_and_the_self_teachers_inputs_are_not():
    method = create()
    found = term_gradients(method, init(method))
    assert moved(found, "loss_ce") == STAGES | {"model/fc"}
    assert moved(found, "loss_ce_bifpn") == STAGES | {"bifpn"}
    assert moved(found, "loss_kd") == STAGES | {"model/fc"}
    assert moved(found, "loss_at") == STAGES
    for path, leaf in jax.tree_util.tree_leaves_with_path(found["loss"]["bifpn"]):
        assert np.any(leaf), jax.tree_util.keystr(path)


def joint(embedding, params):
    x = np.asarray(embedding, np.float64)
    return x @ np.asarray(params["fc"]["kernel"], np.float64) + params["fc"]["bias"]


def test_rotations_follow_the_equations():
    method = create(sla=True, sla_lambda=0.7)
    variables = init(method)
    loss, (metrics, stats, _) = run(method, variables)
    moving, clips, label = dict(variables), BATCH["clips"][:, 0], BATCH["label"]
    student, teacher = passes(moving, clips)
    turned = np.stack([np.rot90(clips, r, axes=(2, 3)) for r in range(4)], 1).reshape(
        24, *clips.shape[1:]
    )
    turned_student, turned_teacher = passes(moving, turned)
    joint_student = joint(turned_student.embedding, variables["params"]["joint"])
    joint_teacher = joint(turned_teacher.embedding, variables["params"]["joint_bifpn"])
    targets = np.stack([4 * label + r for r in range(4)], 1).reshape(-1)
    # As the authors write it: rows of rotation i, columns of rotation i.
    own, refined = (
        np.stack([x[i::4, i::4] for i in range(4)], 1).mean(1)
        for x in (joint_student, joint_teacher)
    )
    kd = (
        16 * np.concatenate([kl(student.logits, teacher.logits, 4.0), kl(own, refined, 4.0)]).mean()
    )
    maps, refined_maps = (
        [np.concatenate([a, b]) for a, b in zip(x.maps, y.maps, strict=True)]
        for x, y in ((student, turned_student), (teacher, turned_teacher))
    )
    want = {
        "loss_ce": cross_entropy(student.logits, label),
        "loss_ce_bifpn": cross_entropy(teacher.logits, label),
        "loss_joint": cross_entropy(joint_student, targets),
        "loss_joint_bifpn": cross_entropy(joint_teacher, targets),
        "loss_sla": 16
        * (kl(student.logits, own, 4.0).mean() + kl(teacher.logits, refined, 4.0).mean()),
        "loss_kd": kd,
        "loss_at": POSITIONS * transfer(maps, refined_maps),
    }
    want["loss"] = (
        sum(want[k] for k in ("loss_ce", "loss_ce_bifpn", "loss_joint", "loss_joint_bifpn"))
        + 0.7 * want["loss_sla"]
        + 2 * want["loss_kd"]
        + 6.25 * want["loss_at"]
    )
    check(metrics, want)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        stats,
        moving["batch_stats"] | {"joint": {}, "joint_bifpn": {}},
    )
    assert loss == metrics["loss"]


def test_stops_among_the_joint_predictions():
    method = create(sla=True)
    found = term_gradients(method, init(method))
    assert moved(found, "loss_joint") == STAGES | {"joint"}
    assert moved(found, "loss_joint_bifpn") == STAGES | {"bifpn", "joint_bifpn"}
    # What the joint heads teach moves the plain logits only: the self-teacher's too.
    assert moved(found, "loss_sla") == STAGES | {"model/fc", "bifpn"}
    # The classifier's aggregated prediction is a student, the self-teacher's a target.
    assert moved(found, "loss_kd") == STAGES | {"model/fc", "joint"}
    assert moved(found, "loss_at") == STAGES


def test_mixed_clips_have_mixed_labels():
    method = create(mix="cutmix", cutmix_alpha=0.7)
    variables = init(method)
    _, (metrics, _, _) = run(method, variables)
    key = jax.random.split(jax.random.split(jax.random.key(2), 3)[0], 1)[0]
    clips, labels = jax.jit(
        lambda k: mixing.cutmix(k, BATCH["clips"][:, 0], BATCH["label"], 4, 0.7)
    )(key)
    assert not np.array_equal(clips, BATCH["clips"][:, 0])
    student, teacher = passes(dict(variables), clips)
    check(
        metrics,
        {
            "loss_ce": cross_entropy(student.logits, labels),
            "loss_ce_bifpn": cross_entropy(teacher.logits, labels),
            "top1": np.mean(student.logits.argmax(-1) == labels.argmax(-1)),
        },
    )


def test_views_are_further_examples():
    """Two views that pass together are a batch of twice the videos."""
    two = float_batch(videos=3, views=2, shape=(2, 4, 4, 3))
    flat = {"clips": two["clips"].reshape(6, 1, 2, 4, 4, 3), "label": np.repeat(two["label"], 2)}
    method = create(views=2, views_together=True, sla=True)
    assert method.num_views == 2
    variables = init(method)
    got = run(method, variables, two)[1][0]
    want = run(create(sla=True), variables, flat)[1][0]
    assert got.keys() - want.keys() == {
        "view_agreement",
        "view_cosine",
        "embedding_std",
        "embedding_rank",
    }
    check(got, want)


def test_replicas():
    replicas_agree(create())


def test_deployed_classifier_is_the_supervised_one():
    method = create(sla=True)
    variables = init(method)
    assert variables["params"].keys() == {"model", "bifpn", "joint", "joint_bifpn"}
    supervised = init(methods.create("supervised", MODEL))
    for collection in variables:
        assert jax.tree.map(np.shape, variables[collection]["model"]) == jax.tree.map(
            np.shape, supervised[collection]["model"]
        )
    clips = BATCH["clips"][:, 0]
    only = {collection: {"model": trees["model"]} for collection, trees in variables.items()}
    assert method.logits(only, clips).shape == (6, 4)
    np.testing.assert_array_equal(method.logits(only, clips), method.logits(variables, clips))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"temperature": 0}, "method.temperature must be positive, got 0"),
        ({"width": 0}, "method.width must be positive"),
        ({"depth": 0}, "method.depth must be at least 1"),
        ({"temporal_kernel": 2}, "method.temporal_kernel must be odd, got 2"),
        ({"mix": "mixupp"}, "unknown method.mix 'mixupp'; did you mean 'mixup'"),
        ({"mix": "mixup", "mixup_alpha": 0}, "method.mixup_alpha must be positive"),
        ({"mix": "cutmix", "sla": True}, "method.sla takes labels that are not mixed"),
        ({"views": 0}, "method.views must be at least 1"),
    ],
)
def test_wrong_hyper_parameters(options, message):
    with pytest.raises(UserError, match=message):
        create(Linear(), **options)
