"""A two-stage network small enough to check by hand, a frozen teacher of it, and a batch for both."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skd_jax import methods
from skd_jax.models import Outputs
from tests.fakes import variables_of

CLASSES, VIDEOS, ROWS = 4, 6, 10


class Staged(nn.Module):
    """Position-wise layers: a map of the clip's size, one of half its height and width, the mean, fc."""

    num_classes: int = CLASSES
    channels: tuple[int, int] = (3, 5)
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, clips, train: bool = False):
        place = jnp.linspace(-1.0, 1.0, clips.shape[2] * clips.shape[3])
        place = place.reshape(*clips.shape[2:4], 1)  # or a turned clip would have the same mean
        first = jnp.tanh(nn.Dense(self.channels[0], name="stage1")(clips * (1 + place)))
        x = nn.avg_pool(first, (1, 2, 2), (1, 2, 2))
        x = nn.Dense(self.channels[1], name="stage2")(x)
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, name="bn")(x)
        second = nn.relu(x) + 0.1 * x
        embedding = second.mean((1, 2, 3))
        return Outputs(nn.Dense(self.num_classes, name="fc")(embedding), embedding, (first, second))


STUDENT, TEACHER = Staged(), Staged(channels=(4, 6))


def batch(seed=0, videos=VIDEOS):
    rng = np.random.default_rng(seed)
    return {
        "clips": sum(  # every video has a colour of its own
            rng.normal(size=(videos, 1, *size, 3), scale=scale)
            for size, scale in (((2, 4, 4), 1), ((1, 1, 1), 4))
        ).astype(np.float32),
        "label": (np.arange(videos) % CLASSES).astype(np.int32),
        "index": rng.permutation(ROWS)[:videos].astype(np.int32),
    }


BATCH = batch()


def frozen(module=TEACHER, seed=5):
    """Variables of a teacher whose running statistics are not those of any batch."""
    clips = BATCH["clips"][:, 0]
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), clips))
    rng = np.random.default_rng(seed)
    trees = jax.tree.map(lambda x: (0.7 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    trees["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 0.5, trees["batch_stats"])
    return trees


def create(name, **options):
    options = {"teacher": TEACHER, "num_videos": ROWS, **options}
    return methods.create(name, STUDENT, **options)


def start(method):
    """(variables, state) with random parameters."""
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "scale" else 2 * x if x.ndim == 2 else x,
        variables_of(method, BATCH["clips"][:1, 0]),
    )
    return variables, {**method.init_state(variables), "teacher": frozen(method.teacher)}


def loss(method, variables, state, given=BATCH, progress=0.5, key=2):
    key = jax.random.key(key)
    return method.loss(variables, given, state, key, jnp.float32(progress), None)


def outputs(module, trees, clips, train):
    """Outputs in float64 NumPy."""
    if train:
        found, _ = module.apply(trees, clips, train=True, mutable=["batch_stats"])
    else:
        found = module.apply(trees, clips, train=False)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def both(variables, state, clips=None):
    """(student's, teacher's) outputs for the batch."""
    clips = BATCH["clips"][:, 0] if clips is None else clips
    own = {collection: trees["model"] for collection, trees in variables.items()}
    return outputs(STUDENT, own, clips, True), outputs(TEACHER, state["teacher"], clips, False)


def term_gradients(method, variables, state, progress=0.5):
    """{term: {network: largest gradient}} of every metric that is a part of the loss."""

    def terms(params):
        given = {**variables, "params": params}
        metrics = loss(method, given, state, progress=progress)[1][0]
        return {k: v for k, v in metrics.items() if k.startswith("loss_")}

    jacobian = jax.jit(jax.jacrev(terms))(variables["params"])

    def largest(tree):
        return max((float(np.abs(x).max()) for x in jax.tree.leaves(tree)), default=0.0)

    return {term: {k: largest(v) for k, v in by.items()} for term, by in jacobian.items()}
