"""SRM: knowledge distillation by sparse representation matching, in three stages."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base
from skd_jax.methods.teacher_student import TeacherStudent, parse_stages
from skd_jax.models.outputs import Outputs
from skd_jax.models.sparse import SparseCode, SparseCodings, dictionary_size

LABELS = ("local", "global", "both")

# Parameters, channels and who follows whom are the same for every clip.
_SOME_CLIP = jax.ShapeDtypeStruct((1, 32, 112, 112, 3), jnp.float32)


@dataclasses.dataclass(frozen=True)
class SRM(TeacherStudent):
    """A teacher's features, coded sparsely, become labels that a student begins with.

    Tran, Gabbouj and Iosifidis, "Knowledge Distillation By Sparse Representation Matching", arXiv
    2103.17012; formulas, sizes and defaults from the authors' code, viebboy/SRM. With the codes of
    `models.sparse`, l over the chosen pairs of maps, t_l the frozen teacher's (evaluation mode), f_l the
    student's:

        1 dictionary    L = sum_l MSE(t_l, D_l s_l)             trains D_l and its intercept, nothing else
        2 student       L = sum_l [ BCE(mean kappa_l(f_l), mean s_l(t_l))          image-level labels
                                  + CE(kappa_l(f_l) as logits, argmax s_l(t_l)) ]  pixel-level labels
                        trains what of the student leads to the maps, and for each map a dictionary
                        and an intercept of the student's own; no class labels
        3 distillation  L = (1 - a) CE(q, y) + a T^2 KL(softmax(q_t / T) || softmax(q / T))

    This method is stage 3, `KD` from the student that stage 2 left; the first two are
    `earlier_stages`. The authors' code runs the teacher of stage 1 in training mode, so that its statistics
    move: that is not copied. Where T, H or W of a pair differ, the teacher's code is brought to the
    student's grid before the pixel-level labels are read off it (`losses.pixel_labels`); image-level
    labels are means over all pixels. Dictionaries are trained by the authors' Adam, without weight decay;
    stages 2 and 3 by the run's optimiser.

    Attributes:
      lambda_ce: 1 - a. The authors tried a of 0.25, 0.5 and 0.75 and T of 2, 4 and 8 on CIFAR-100.
      lambda_kd: a.
      mu: atoms of a dictionary for each channel of the teacher's map.
      sparsity: lambda, entries of a code for each atom.
      stages: maps to use, as in FitNet, "2,3" or pairs STUDENT:TEACHER "2:3"; from the end -1, -2, ...
      labels: "local" (pixel-level), "global" (image-level) or "both".
      dictionary_share: of the training's steps, for stage 1. 0.16, 0.37 and the rest are those of
        the authors' ImageNet training (35, 80 and 100 epochs).
      student_share: likewise, for stage 2.
      dictionary_learning_rate: of stage 1.
      usage_window: steps (with `train.accumulate`, micro-batches) for which an atom that was in a code
        counts as in use.
    """

    lambda_ce: float = 0.5
    lambda_kd: float = 0.5
    mu: float = 2.0
    sparsity: float = 0.02
    stages: str = "-3,-2,-1"
    labels: str = "both"
    dictionary_share: float = 0.16
    student_share: float = 0.37
    dictionary_learning_rate: float = 1e-3
    usage_window: int = 100

    def __post_init__(self):
        super().__post_init__()
        if self.mu <= 0:
            raise UserError(f"method.mu must be positive, got {self.mu}")
        if not 0 < self.sparsity <= 1:
            raise UserError(f"method.sparsity must be in (0, 1], got {self.sparsity}")
        if self.labels not in LABELS:
            raise UserError(
                f"method.labels must be one of {', '.join(LABELS)}, got {self.labels!r}"
            )
        if not parse_stages(self.stages):
            raise UserError("method.stages is empty; name the maps to use, such as '-3,-2,-1'")
        shares = (self.dictionary_share, self.student_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise UserError(
                "method.dictionary_share and method.student_share must be above 0 and leave some of "
                f"the training to the distillation, got {shares[0]:g} and {shares[1]:g}"
            )
        if self.dictionary_learning_rate <= 0:
            raise UserError(
                "method.dictionary_learning_rate must be positive, got "
                f"{self.dictionary_learning_rate}"
            )
        if self.usage_window < 1:
            raise UserError(f"method.usage_window must be at least 1, got {self.usage_window}")

    @property
    def earlier_stages(self):
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        adam = {
            "name": "adamw",
            "learning_rate": self.dictionary_learning_rate,
            "weight_decay": 0.0,
        }
        return (
            base.Stage("dictionary", _Dictionary(**values), self.dictionary_share, adam),
            base.Stage("student", _Student(**values), self.student_share),
        )

    def begin(self, variables, state, finished):
        return base.replace_network(variables, "model", finished["student"]), state

    def _teachers(self, outputs: Outputs) -> tuple[jax.Array, ...]:
        return _pick(outputs, [theirs for _, theirs in parse_stages(self.stages)], "teacher")

    def _students(self, outputs: Outputs) -> tuple[jax.Array, ...]:
        return _pick(outputs, [ours for ours, _ in parse_stages(self.stages)], "student")

    def _teacher_shapes(self) -> Outputs:
        if self.teacher is None:
            raise UserError("this method learns from a teacher; give `teacher`, its network")
        return _shapes(self.teacher)

    def _dictionaries(self) -> SparseCodings:
        channels = [x.shape[-1] for x in self._teachers(self._teacher_shapes())]
        if min(channels) * self.mu < 1:
            raise UserError(
                f"method.mu={self.mu} leaves no atom for a map of {min(channels)} channels; take a larger mu"
            )
        return SparseCodings(tuple(dictionary_size(c, self.mu, self.sparsity) for c in channels))

    def _init_dictionaries(self, rng, maps) -> base.PyTree:
        """Variables of the blocks for maps of these channels."""
        return self._dictionaries().init(rng, tuple(jnp.zeros((1, x.shape[-1])) for x in maps))


@dataclasses.dataclass(frozen=True)
class _Dictionary(SRM):
    """Stage 1; the student in variables["params"]["model"] is left as it is."""

    earlier_stages = ()
    fixed = ("model",)

    def init(self, rng, clips):
        self._students(_shapes(self.model))  # what stage 2 would miss is told now
        return base.nest(
            {
                "model": self.model.init({"params": rng}, clips, train=False),
                "dictionary": self._init_dictionaries(
                    jax.random.fold_in(rng, 0), self._teachers(self._teacher_shapes())
                ),
            }
        )

    def init_state(self, variables):
        # Steps since an atom was in a code.
        sizes = self._dictionaries().sizes
        return {"idle": tuple(jnp.full(k, self.usage_window, jnp.int32) for k, _ in sizes)}

    def begin(self, variables, state, finished):
        return variables, state

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del rng, progress
        maps = self._teachers(self.taught(state, batch["clips"][:, 0]))
        codes = self._dictionaries().apply(base.network(variables, "dictionary"), maps)
        idle = tuple(
            jnp.where(_used(code, axis_name), 0, jnp.minimum(old + 1, self.usage_window))
            for code, old in zip(codes, state["idle"], strict=True)
        )
        errors = [
            losses.reconstruction_error(x, code.reconstruction).mean()
            for x, code in zip(maps, codes, strict=True)
        ]
        loss = sum(errors)
        # Relative to the features: zeros would have 1.
        relative = [
            error / jnp.maximum(jnp.mean(jnp.square(x.astype(jnp.float32))), 1e-12)
            for x, error in zip(maps, errors, strict=True)
        ]
        in_use = [jnp.mean(steps < self.usage_window, dtype=jnp.float32) for steps in idle]
        metrics = {
            "loss": loss,
            **_each("reconstruction_error", relative),
            **_each("atoms_in_use", in_use),
        }
        return loss, (metrics, variables["batch_stats"], {**state, "idle": idle})


@dataclasses.dataclass(frozen=True)
class _Student(SRM):
    """Stage 2; state["dictionary"] is what stage 1 left."""

    earlier_stages = ()

    @functools.cached_property  # it traces the network, and a step asks anew at every compilation
    def fixed(self):
        # No loss here reaches these; weight decay alone would move them, towards zero.
        return tuple(f"model/{name}" for name in _behind(self.model, self._students))

    def init(self, rng, clips):
        return base.nest(
            {
                "model": self.model.init({"params": rng}, clips, train=False),
                "coder": self._init_dictionaries(
                    jax.random.fold_in(rng, 0), self._students(_shapes(self.model))
                ),
            }
        )

    def init_state(self, variables):
        maps = self._teachers(self._teacher_shapes())
        return {"dictionary": self._init_dictionaries(jax.random.key(0), maps)["params"]}

    def begin(self, variables, state, finished):
        dictionary = finished["dictionary"]["params"]["dictionary"]
        return variables, {**state, "dictionary": jax.tree.map(jnp.asarray, dictionary)}

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        outputs, stats = base.classifier_views(
            self, variables, batch["clips"], together=False, rng=rng, axis_name=axis_name, maps=True
        )
        maps = self._students(jax.tree.map(lambda x: x[:, 0], outputs))
        dictionaries = self._dictionaries()
        predicted = dictionaries.apply(base.network(variables, "coder"), maps)
        taught = dictionaries.apply(
            {"params": state["dictionary"]},
            self._teachers(self.taught(state, batch["clips"][:, 0])),
        )
        loss_image = loss_pixel = jnp.zeros(())
        agreement = []
        for ours, theirs in zip(predicted, taught, strict=True):
            labels = losses.pixel_labels(theirs.code, ours.similarity.shape[1:4])
            same = jnp.argmax(ours.similarity, axis=-1) == labels
            agreement.append(jnp.mean(same, dtype=jnp.float32))
            if self.labels in ("global", "both"):
                loss_image += losses.image_label_loss(
                    losses.image_labels(ours.similarity), losses.image_labels(theirs.code)
                ).mean()
            if self.labels in ("local", "both"):
                loss_pixel += losses.pixel_label_loss(ours.similarity, labels).mean()
        loss = loss_image + loss_pixel
        metrics = {
            "loss": loss,
            "loss_image": loss_image,
            "loss_pixel": loss_pixel,
            **_each("pixel_agreement", agreement),
        }
        return loss, (metrics, {"model": stats, "coder": {}}, state)


def _used(code: SparseCode, axis_name: str | None) -> jax.Array:
    """(K,) whether an atom is in a code of the batch, of all replicas."""
    used = jnp.any(code.code.reshape(-1, code.code.shape[-1]) > 0, axis=0)
    if axis_name is None:
        return used
    return jax.lax.pmax(used.astype(jnp.int32), axis_name) > 0


def _each(name: str, values: list[jax.Array]) -> dict[str, jax.Array]:
    """The mean over the maps, and each in the order of `SRM.stages`, counted from 1."""
    numbered = {f"{name}_{number}": value for number, value in enumerate(values, start=1)}
    return {name: jnp.stack(values).mean(), **numbered}


def _pick(outputs: Outputs, numbers: list[int], whose: str) -> tuple[jax.Array, ...]:
    """Maps by number, from 1 or from the end by -1, -2, ..."""
    count = len(outputs.maps)
    for number in numbers:
        if abs(number) > count:
            raise UserError(f"method.stages: the {whose} has stages 1 to {count}, no {number}")
    return tuple(outputs.maps[number - 1 if number > 0 else number] for number in numbers)


def _shapes(module: nn.Module) -> Outputs:
    """Shapes of a network's outputs for some clip."""
    return jax.eval_shape(
        lambda clips: module.init_with_output(jax.random.key(0), clips, train=False)[0], _SOME_CLIP
    )


def _behind(module: nn.Module, pick: Callable[[Outputs], tuple[jax.Array, ...]]) -> tuple[str, ...]:
    """Parameters, as a/b/kernel, that the picked maps of a network are no function of.

    Read off the network's own program, backwards from the maps; nothing is computed. The classifier
    is among them, and whatever else comes after the last of the maps.
    """
    if getattr(module, "remat", False):
        # A stage that is recomputed is one operation there, given the parameters of all.
        module = module.clone(remat=False)
    variables = jax.eval_shape(
        lambda clips: module.init(jax.random.key(0), clips, train=False), _SOME_CLIP
    )
    program = jax.make_jaxpr(lambda *args: pick(module.apply(*args, train=False)))(
        variables, _SOME_CLIP
    ).jaxpr

    def values(atoms):
        return {x for x in atoms if not isinstance(x, Literal)}

    read = values(program.outvars)
    for operation in reversed(program.eqns):
        if not read.isdisjoint(operation.outvars):
            read |= values(operation.invars)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    unread = [n for n, x in zip(names, program.invars, strict=False) if x not in read]
    return tuple(n.removeprefix("params/") for n in unread if n.startswith("params/"))
