"""Every method on networks of every family, with teachers of another one; traced, not run."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from skd_jax import methods, models
from skd_jax.errors import UserError

SHALLOW = {"stage_sizes": (1, 1, 1, 1)}
FAMILIES = {
    "r3d_10": {},
    "mobilenetv2_x0_2": {},
    "r2plus1d_18": SHALLOW,
    "x3d_xs": SHALLOW,
    "s3d": {},
    "shufflenetv2_x0_25": {},
    "i3d_r50": SHALLOW,
    "ipcsn_50": SHALLOW,
    "mc3_18": SHALLOW,
    "slowfast_r50": SHALLOW,
    "resnet3d_50": SHALLOW,
    "shufflenet2p1d": {},
    "ircsn_50": SHALLOW,
    "resnet2p1d_18": SHALLOW,
}
CLIP = (16, 64, 64, 3)
OPTIONS = {"at": {"stages": "-2,-1"}, "crd": {"negatives": 8}, "bake": {"num_partners": 1}}
# Their classifier sits on more than the mean of the last map, or of its windows.
ELSEWHERE = {"mobilenetv2_x0_2", "x3d_xs", "shufflenetv2_x0_25", "slowfast_r50"}


@functools.cache
def network(name):
    return models.describe(name).build(num_classes=4, width=0.125, **FAMILIES[name])


@functools.cache
def stages(name):
    shapes = jax.eval_shape(
        network(name).init_with_output, jax.random.key(0), jnp.zeros((1, *CLIP))
    )
    return len(shapes[0].maps)


def refused(method, student, teacher):
    """What the method cannot do, as its documentation says."""
    if method == "icsd":
        return bool(ELSEWHERE & {student, teacher})
    if method == "srd":
        return teacher in ELSEWHERE
    return method == "hsakd" and stages(student) != stages(teacher)


def cases():
    """All pairs; three families of each method always, such that each takes its turn, the rest with -m slow."""
    names = list(FAMILIES)
    for i, (method, j) in enumerate(itertools.product(methods.names(), range(len(names)))):
        number = i // len(names)
        teacher = names[(j + 1 + number % 5) % len(names)]
        if method == "tf_kd_self":  # learns from a run of itself
            teacher = names[j]
        always = (j + 3 * number) % len(names) < 3
        yield pytest.param(method, names[j], teacher, marks=() if always else pytest.mark.slow)


@pytest.mark.parametrize("name,student,teacher", cases())
def test_a_method_trains_any_network(name, student, teacher):
    """Its loss is a number, statistics and state keep their shapes; a network that it cannot use is told."""
    taught = methods.takes_teacher(name)
    given = {"teacher": network(teacher)} if taught else {}
    final = methods.create(name, network(student), num_videos=16, **given, **OPTIONS.get(name, {}))
    for method in (*(stage.method for stage in final.earlier_stages), final):
        batch = {
            "clips": jnp.zeros((2, method.num_views, *CLIP)),
            "label": jnp.arange(2),
            "index": jnp.arange(2),
        }

        def loss(batch, method=method):
            variables = method.init(jax.random.key(0), batch["clips"][:1, 0])
            state = method.init_state(variables)
            if taught:
                frozen = method.teacher.init(jax.random.key(1), batch["clips"][:1, 0])
                state = {**state, "teacher": frozen}
            value, (metrics, stats, after) = method.loss(
                variables, batch, state, jax.random.key(2), jnp.zeros(()), None
            )
            return value, metrics, (stats, variables["batch_stats"]), (after, state)

        if taught and refused(name, student, teacher):
            with pytest.raises(UserError, match="take a (network|teacher)"):
                jax.eval_shape(loss, batch)
            return
        value, metrics, *pairs = jax.eval_shape(loss, batch)
        assert value.shape == () and {m.shape for m in metrics.values()} == {()}
        for after, before in pairs:
            assert jax.tree.map(lambda x: x.shape, dict(after)) == jax.tree.map(
                lambda x: x.shape, dict(before)
            )
