"""SKD-SRL against NumPy: its loss from logits and heads, its gradients, and every switch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skd_jax import methods
from skd_jax.errors import UserError
from skd_jax.models import heads
from tests.fakes import (
    Linear,
    Normed,
    cosine,
    float_batch,
    kl,
    log_softmax,
    quick_compilation,  # noqa: F401  a fixture
    softmax,
    variables_of,
)

BATCH = float_batch()
SMALL = {"projector_out": 8, "predictor_hidden": 5}


def create(model=None, **options):
    return methods.create("skd_srl", model or Normed(), **SMALL | options)


def init(method):
    return variables_of(method, BATCH["clips"][:1, 0])


def loss_of(method, variables, batch=BATCH, progress=0.0):
    key = jax.random.key(2)
    return jax.jit(lambda v: method.loss(v, batch, {}, key, jnp.float32(progress), None))(variables)


def gradient_of(method, variables, **options):
    """Of the loss with respect to the parameters; numeric options may be given as arguments."""

    def loss(params, options):
        return loss_of(dataclasses.replace(method, **options), {**variables, "params": params})[0]

    return jax.grad(loss)(variables["params"], options)


def one_pass(module, variables, name, inputs):
    trees = {collection: trees[name] for collection, trees in variables.items()}
    outputs, updated = jax.jit(
        lambda trees, x: module.apply(trees, x, train=True, mutable=["batch_stats"])
    )(trees, inputs)
    variables["batch_stats"] = variables["batch_stats"] | {name: updated["batch_stats"]}
    return outputs


def expected(variables, together, predictor=True, hidden=None):
    """Logits, embeddings, z and p of both views and the new statistics, network by network."""
    variables = dict(variables)
    clips = BATCH["clips"]
    inputs = (
        [np.concatenate([clips[:, 0], clips[:, 1]])] if together else [clips[:, 0], clips[:, 1]]
    )
    networks = {"model": Normed(), "projector": heads.Projector(8, hidden)}
    if predictor:
        networks["predictor"] = heads.Predictor(5)
    results = {}
    for name, module in networks.items():
        outputs = [one_pass(module, variables, name, x) for x in inputs]
        if name == "model":
            results["logits"] = [o.logits for o in outputs]
            inputs = results["embedding"] = [o.embedding for o in outputs]
        else:
            inputs = results[name] = outputs
    halves = {
        name: np.split(np.asarray(values[0], np.float64), 2)
        if together
        else [np.asarray(value, np.float64) for value in values]
        for name, values in results.items()
    }
    return halves, variables["batch_stats"]


def cross_entropy(logits, smoothing=0.0):
    target = (1 - smoothing) * np.eye(4)[BATCH["label"]] + smoothing / 4
    return -(target * log_softmax(logits)).sum(-1).mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"views_together": True, "scale_by_t2": True, "temperature": 3.0},
        {"use_predictor": False, "label_smoothing": 0.2, "lambda_sim": 0.3, "lambda_kd": 2.0},
        {"stop_gradient_labels": False, "projector_hidden": 5},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_loss_and_statistics_follow_the_equations(options):
    method = create(**options)
    variables = init(method)
    loss, (metrics, stats, state) = loss_of(method, variables)
    predictor = options.get("use_predictor", True)
    views, want_stats = expected(
        variables, method.views_together, predictor, options.get("projector_hidden")
    )
    q1, q2 = views["logits"]
    z1, z2 = views["projector"]
    p1, p2 = views["predictor" if predictor else "projector"]
    ce = (cross_entropy(q1, method.label_smoothing) + cross_entropy(q2, method.label_smoothing)) / 2
    kd = (kl(q1, q2, method.temperature) + kl(q2, q1, method.temperature)).mean() / 2
    kd *= method.temperature**2 if method.scale_by_t2 else 1
    sim = -(cosine(p1, z2) + cosine(p2, z1)).mean() / 2
    want = {
        "loss": ce + method.lambda_kd * kd + method.lambda_sim * sim,
        "loss_ce": ce,
        "loss_kd": kd,
        "loss_sim": sim,
        "top1": np.mean([q.argmax(-1) == BATCH["label"] for q in (q1, q2)]),
        "view_agreement": np.mean(q1.argmax(-1) == q2.argmax(-1)),
        "view_cosine": cosine(*views["embedding"]).mean(),
    }
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert loss == metrics["loss"] and loss.dtype == jnp.float32
    assert {"embedding_std", "embedding_rank"} <= metrics.keys()
    assert state == {}
    assert stats.keys() == want_stats.keys() == variables["params"].keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stats, want_stats
    )


@pytest.mark.parametrize("stopped,scale_by_t2", [(True, False), (False, True)])
def test_gradient_with_and_without_the_stop_on_soft_labels(stopped, scale_by_t2):
    """Through a linear classifier the gradient of the kernel is known by hand."""
    method = create(
        Linear(),
        lambda_sim=0.0,
        lambda_kd=0.7,
        temperature=2.0,
        stop_gradient_labels=stopped,
        scale_by_t2=scale_by_t2,
    )
    variables = init(method)
    x = BATCH["clips"].astype(np.float64).reshape(6, 2, -1)
    q = x @ np.asarray(variables["params"]["model"]["fc"]["kernel"], np.float64)
    log = log_softmax(q / 2)
    soft, target = np.exp(log), np.eye(4)[BATCH["label"]]
    to_logits = np.zeros_like(q)
    for view, other in ((0, 1), (1, 0)):
        as_student = (soft[:, view] - soft[:, other]) / 2
        difference = log[:, view] - log[:, other]
        divergence = (soft[:, view] * difference).sum(-1, keepdims=True)
        as_teacher = 0 if stopped else soft[:, view] * (difference - divergence) / 2
        distilled = (4 if scale_by_t2 else 1) * 0.7 * (as_student + as_teacher)
        to_logits[:, view] = (softmax(q[:, view]) - target + distilled) / (2 * 6)
    want = np.einsum("bvd,bvk->dk", x, to_logits)
    got = gradient_of(method, variables)["model"]["fc"]["kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (1.0, 1.0)])
def test_terms_rise_over_the_first_part_of_the_training(progress, share):
    method = create(ramp_up=0.4, lambda_kd=2.0, lambda_sim=0.5)
    loss, (metrics, _, _) = loss_of(method, init(method), progress=progress)
    want = 2.0 * metrics["loss_kd"] + 0.5 * metrics["loss_sim"]
    assert abs(want) > 0.01
    np.testing.assert_allclose(loss, metrics["loss_ce"] + share * want, rtol=1e-5)


def largest(tree):
    return max(float(abs(x).max()) for x in jax.tree.leaves(tree))


def test_weights_of_the_parts_reach_their_networks():
    method = create()
    variables = init(method)

    @jax.jit
    def gradient(kd, sim):
        return gradient_of(method, variables, lambda_kd=kd, lambda_sim=sim)

    both = gradient(0.1, 1.0)
    assert all(largest(both[name]) > 1e-4 for name in ("model", "projector", "predictor"))
    without = gradient(0.1, 0.0)
    assert largest([without["projector"], without["predictor"]]) == 0.0
    want = gradient_of(methods.create("supervised", Normed(), views=2), variables)["model"]
    # L_sim trains the classifier through the embedding, and not what stands behind that.
    pulled = jax.tree.map(jnp.subtract, both["model"], without["model"])
    assert largest(pulled["stem"]) > 1e-4 and largest(pulled["bn"]) > 1e-4
    assert largest(pulled["fc"]) < 1e-6 < largest(without["model"]["fc"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(0.0, 0.0)["model"],
        want,
    )
    assert largest(jax.tree.map(jnp.subtract, without["model"], want)) > 1e-5  # L_kd was there


def test_without_its_terms_it_is_two_view_supervision():
    ours = create(lambda_kd=0.0, lambda_sim=0.0)
    plain = methods.create("supervised", Normed(), views=2)
    variables = init(ours)
    of_model = {collection: {"model": trees["model"]} for collection, trees in variables.items()}

    def step(method, variables):
        def loss(params):
            value, (_, stats, _) = loss_of(method, {**variables, "params": params})
            return value, stats

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    (got, stats), gradient = step(ours, variables)
    (want, stats_plain), gradient_plain = step(plain, of_model)
    assert largest(gradient_plain) > 1e-2
    for a, b in (
        (got, want),
        (gradient["model"], gradient_plain["model"]),
        (stats["model"], stats_plain["model"]),
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def test_target_projection_takes_no_gradient():
    """Without the predictor, sg(z) leaves one half of the gradient of -cos(z1, z2)."""
    method = create(use_predictor=False, lambda_kd=0.0)
    variables = init(method)

    def stopped(params):
        return loss_of(method, {**variables, "params": params})[1][0]["loss_sim"]

    def free(params):
        stats = variables["batch_stats"]
        z = []
        for view in (0, 1):
            out, _ = Normed().apply(
                {"params": params["model"], "batch_stats": stats["model"]},
                BATCH["clips"][:, view],
                train=True,
                mutable=["batch_stats"],
            )
            out, _ = heads.Projector(8).apply(
                {"params": params["projector"], "batch_stats": stats["projector"]},
                out.embedding,
                train=True,
                mutable=["batch_stats"],
            )
            z.append(out / jnp.linalg.norm(out, axis=-1, keepdims=True))
        return -(z[0] * z[1]).sum(-1).mean()

    value, got = jax.jit(jax.value_and_grad(stopped))(variables["params"])
    same, whole = jax.jit(jax.value_and_grad(free))(variables["params"])
    np.testing.assert_allclose(value, same, rtol=1e-4)
    # The mean of D(z1, sg z2) and D(z2, sg z1) moves each argument once, at weight 1/2.
    assert largest(whole["projector"]) > 1e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b / 2, rtol=1e-3, atol=1e-5),
        got["projector"],
        whole["projector"],
    )


def test_networks_and_their_learning_rates():
    method = create()
    assert init(method)["params"].keys() == {"model", "projector", "predictor"}
    assert method.num_views == 2
    assert method.constant_lr == ("predictor",)
    assert create(constant_predictor_lr=False).constant_lr == ()
    plain = create(use_predictor=False)
    assert init(plain)["params"].keys() == {"model", "projector"}
    assert plain.constant_lr == ()


def test_widths_of_the_heads():
    params = init(create(projector_hidden=5, projector_out=12, predictor_hidden=3))["params"]
    shapes = jax.tree.map(jnp.shape, params)
    assert [shapes["projector"][f"fc{i}"]["kernel"] for i in (1, 2, 3)] == [(6, 5), (5, 5), (5, 12)]
    assert [shapes["predictor"][f"fc{i}"]["kernel"] for i in (1, 2)] == [(12, 3), (3, 12)]
    params = init(create(projector_hidden=0, projector_out=12, predictor_hidden=0))["params"]
    assert params["projector"]["fc1"]["kernel"].shape == (6, 6)
    assert params["predictor"]["fc1"]["kernel"].shape == (12, 3)


def test_initial_variables_depend_on_the_key_alone():
    start = jax.jit(create().init)
    first, again, second = (start(jax.random.key(k), BATCH["clips"][:1, 0]) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for name, layer in (("model", "stem"), ("projector", "fc1"), ("predictor", "fc1")):
        kernels = [v["params"][name][layer]["kernel"] for v in (first, second)]
        assert (kernels[0] != kernels[1]).all(), name


def test_deployed_classifier_needs_the_model_alone():
    method = create()
    variables = init(method)
    clips = BATCH["clips"][:, 0]
    only = {collection: {"model": trees["model"]} for collection, trees in variables.items()}
    got = method.logits(only, clips)
    want = Normed().apply({c: t["model"] for c, t in variables.items()}, clips).logits
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(method.logits(variables, clips), got)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_ramp_up_is_a_share(share):
    with pytest.raises(UserError, match=f"method.ramp_up must be between 0 and 1, got {share}"):
        create(ramp_up=share)


def test_temperature_must_be_positive():
    with pytest.raises(UserError, match="method.temperature must be positive, got -1"):
        create(temperature=-1)
