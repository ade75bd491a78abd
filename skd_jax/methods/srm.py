"""SRM: knowledge distillation by sparse representation matching, in three stages."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics
from skd_jax.models.outputs import Outputs
from skd_jax.models.sparse import SparseCode, SparseCodings, dictionary_size

LABELS = ("local", "global", "both")
_POOLED = "pooled"
_DEFAULT_MAPS = 3


@dataclasses.dataclass(frozen=True)
class SRM(base.Method):
    """A teacher's features, coded sparsely, become labels that a student begins with.

    Tran, Gabbouj and Iosifidis, "Knowledge Distillation By Sparse Representation Matching", arXiv
    2103.17012; formulas, sizes and defaults from the authors' code, viebboy/SRM. With the codes of
    `models.sparse`, l over the chosen maps, t the frozen teacher in evaluation mode, f the student:

        1 dictionary:   L = sum_l MSE(t_l, D_l s_l)                     trains D_l and its intercept only
        2 student:      L = sum_l [BCE(mean kappa_l(f_l), mean s_l(t_l))              image-level labels
                                   + CE(kappa_l(f_l) as logits, argmax s_l(t_l))]     pixel-level labels
                        trains the student and a dictionary of its own for each map; no class labels
        3 distillation: L = (1 - alpha) CE(q, y) + alpha T^2 KL(softmax(q_t / T) || softmax(q / T))

    This method is stage 3; `stages` are the first two. The authors' code runs the teacher of stage 1 in
    training mode, which changes its statistics: that is not copied. Where the maps of teacher and
    student differ in T, H or W, the teacher's codes are brought to the student's grid before the
    pixel-level labels are read off (`losses.pixel_labels`). Image-level labels are means over all
    pixels and need nothing. The optimiser of the dictionaries is the authors' Adam without weight decay;
    stages 2 and 3 use that of the run.

    Attributes:
      teacher: the frozen classifier; its variables are state["teacher"].
      mu: atoms of a dictionary for each channel of the teacher's map.
      sparsity: lambda, entries of a code for each atom.
      maps: of the student, "2,3,4" by number from 1; "pooled" is the embedding as a map of one pixel.
        Empty takes the last three.
      teacher_maps: of the teacher, one for each of the student's; empty takes as many of its last
        where `maps` is empty too, else the same as `maps`.
      labels: "local" (pixel-level), "global" (image-level) or "both".
      alpha: weight of the distillation in stage 3.
      temperature: T of stage 3.
      dictionary_share: of the training's steps, for stage 1. 0.16, 0.37 and the rest are those of
        the authors' ImageNet training (35, 80 and 100 epochs).
      student_share: likewise, for stage 2.
      dictionary_learning_rate: of stage 1.
      usage_window: steps for which an atom that was in a code counts as in use.
      label_smoothing: of the cross-entropy of stage 3.
    """

    teacher: nn.Module | None = None
    mu: float = 2.0
    sparsity: float = 0.02
    maps: str = ""
    teacher_maps: str = ""
    labels: str = "both"
    alpha: float = 0.5
    temperature: float = 4.0
    dictionary_share: float = 0.16
    student_share: float = 0.37
    dictionary_learning_rate: float = 1e-3
    usage_window: int = 100
    label_smoothing: float = 0.0

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
        if not 0 <= self.alpha <= 1:
            raise UserError(f"method.alpha must be in [0, 1], got {self.alpha}")
        if self.temperature <= 0:
            raise UserError(f"method.temperature must be positive, got {self.temperature}")
        shares = (self.dictionary_share, self.student_share)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise UserError(
                "method.dictionary_share and method.student_share must be above 0 and leave some of "
                f"the training to the distillation, got {shares[0]:g} and {shares[1]:g}"
            )
        if self.usage_window < 1:
            raise UserError(f"method.usage_window must be at least 1, got {self.usage_window}")
        for key in ("maps", "teacher_maps"):
            for name in _names(getattr(self, key)):
                if name != _POOLED and not (name.isdecimal() and int(name) > 0):
                    raise UserError(
                        f"method.{key}={getattr(self, key)!r}: {name!r} is no map; write numbers from "
                        f"1 and {_POOLED!r}, such as '2,3,4,{_POOLED}'"
                    )
        ours, theirs = len(_names(self.maps)) or _DEFAULT_MAPS, len(_names(self.teacher_maps))
        if theirs and ours != theirs:
            raise UserError(
                f"method.teacher_maps={self.teacher_maps!r} names {theirs} maps for the student's "
                f"{ours}; name one for each"
            )

    @property
    def num_views(self) -> int:
        return 1

    @property
    def compares_classes(self) -> bool:
        return True

    @property
    def stages(self) -> tuple[base.Stage, ...]:
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

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        outputs, stats = base.classifier_views(
            self, variables, batch["clips"], together=False, rng=rng, axis_name=axis_name
        )
        logits = outputs.logits[:, 0]
        taught = self._teach(state, batch["clips"]).logits
        loss_ce = losses.cross_entropy(logits, batch["label"], self.label_smoothing).mean()
        loss_kd = losses.soft_label_distillation(
            logits, taught, self.temperature, scale_by_t2=True
        ).mean()
        loss = (1 - self.alpha) * loss_ce + self.alpha * loss_kd
        metrics = {
            "loss": loss,
            "loss_ce": loss_ce,
            "loss_kd": loss_kd,
            "top1": diagnostics.accuracy(outputs.logits, batch["label"]),
            "teacher_top1": diagnostics.accuracy(taught[:, None], batch["label"]),
        }
        return loss, (metrics, {"model": stats}, state)

    def _teach(self, state, clips) -> Outputs:
        outputs = self.teacher.apply(state["teacher"], clips[:, 0], train=False)
        return jax.lax.stop_gradient(outputs)

    def _teachers(self, known: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return _pick(known, _names(self.teacher_maps) or _names(self.maps), "teacher")

    def _students(self, known: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return _pick(known, _names(self.maps), "student")

    def _dictionaries(self) -> SparseCodings:
        if self.teacher is None:
            raise UserError("method srm learns from a teacher; set method.teacher")
        maps = self._teachers(_shapes(self.teacher)).values()
        return SparseCodings(
            tuple(dictionary_size(x.shape[-1], self.mu, self.sparsity) for x in maps)
        )

    def _init_dictionaries(self, rng, maps: dict[str, jax.Array]) -> dict:
        """Variables of the blocks for maps of these channels."""
        return self._dictionaries().init(
            rng, tuple(jnp.zeros((1, x.shape[-1])) for x in maps.values())
        )


@dataclasses.dataclass(frozen=True)
class _Dictionary(SRM):
    """Stage 1; the student in variables["params"]["model"] is left as it is."""

    stages = ()
    compares_classes = False
    fixed = ("model",)

    def init(self, rng, clips):
        model_rng, rng = jax.random.split(rng)
        return base.nest(
            {
                "model": self.model.init({"params": model_rng}, clips, train=False),
                "dictionary": self._init_dictionaries(rng, self._teachers(_shapes(self.teacher))),
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
        named = self._teachers(_maps(self._teach(state, batch["clips"])))
        maps = tuple(named.values())
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
        # Relative to the features: 1 is no better than zeros.
        relative = [
            error / jnp.maximum(jnp.mean(jnp.square(x.astype(jnp.float32))), 1e-12)
            for x, error in zip(maps, errors, strict=True)
        ]
        in_use = [jnp.mean(age < self.usage_window, dtype=jnp.float32) for age in idle]
        metrics = {
            "loss": loss,
            **_by_map("reconstruction_error", tuple(named), relative),
            **_by_map("atoms_in_use", tuple(named), in_use),
        }
        return loss, (metrics, variables["batch_stats"], {**state, "idle": idle})


@dataclasses.dataclass(frozen=True)
class _Student(SRM):
    """Stage 2; state["dictionary"] is what stage 1 left."""

    stages = ()
    compares_classes = False
    fixed = ("model/fc",)  # no loss here reaches it; weight decay alone would shrink it

    def init(self, rng, clips):
        model_rng, rng = jax.random.split(rng)
        return base.nest(
            {
                "model": self.model.init({"params": model_rng}, clips, train=False),
                "coder": self._init_dictionaries(rng, self._students(_shapes(self.model))),
            }
        )

    def init_state(self, variables):
        maps = self._teachers(_shapes(self.teacher))
        return {"dictionary": self._init_dictionaries(jax.random.key(0), maps)["params"]}

    def begin(self, variables, state, finished):
        dictionary = finished["dictionary"]["params"]["dictionary"]
        return variables, {**state, "dictionary": jax.tree.map(jnp.asarray, dictionary)}

    def loss(self, variables, batch, state, rng, progress, axis_name):
        del progress
        outputs, stats = base.classifier_views(
            self, variables, batch["clips"], together=False, rng=rng, axis_name=axis_name, maps=True
        )
        outputs = jax.tree.map(lambda x: x[:, 0], outputs)
        dictionaries = self._dictionaries()
        own = self._students(_maps(outputs))
        predicted = dictionaries.apply(base.network(variables, "coder"), tuple(own.values()))
        theirs = self._teachers(_maps(self._teach(state, batch["clips"])))
        taught = dictionaries.apply({"params": state["dictionary"]}, tuple(theirs.values()))
        pairs = list(zip(predicted, taught, strict=True))
        loss_image = loss_pixel = jnp.zeros(())
        if self.labels in ("global", "both"):
            loss_image = sum(_image_loss(ours, theirs) for ours, theirs in pairs)
        if self.labels in ("local", "both"):
            loss_pixel = sum(_pixel_loss(ours, theirs) for ours, theirs in pairs)
        loss = loss_image + loss_pixel
        agreement = jnp.stack([_agreement(ours, theirs) for ours, theirs in pairs]).mean()
        metrics = {
            "loss": loss,
            "loss_image": loss_image,
            "loss_pixel": loss_pixel,
            "pixel_agreement": agreement,
        }
        return loss, (metrics, {"model": stats, "coder": {}}, state)


def _image_loss(student: SparseCode, teacher: SparseCode) -> jax.Array:
    return losses.image_label_loss(
        losses.image_labels(student.similarity), losses.image_labels(teacher.code)
    ).mean()


def _labels_for(student: SparseCode, teacher: SparseCode) -> jax.Array:
    return losses.pixel_labels(teacher.code, student.similarity.shape[1:4])


def _pixel_loss(student: SparseCode, teacher: SparseCode) -> jax.Array:
    return losses.pixel_label_loss(student.similarity, _labels_for(student, teacher)).mean()


def _agreement(student: SparseCode, teacher: SparseCode) -> jax.Array:
    """Share of the pixels for which both choose the same atom."""
    same = jnp.argmax(student.similarity, axis=-1) == _labels_for(student, teacher)
    return jnp.mean(same, dtype=jnp.float32)


def _used(code: SparseCode, axis_name: str | None) -> jax.Array:
    """(K,) whether an atom is in a code of the batch, of all replicas."""
    used = jnp.any(code.code.reshape(-1, code.code.shape[-1]) > 0, axis=0)
    if axis_name is None:
        return used
    return jax.lax.pmax(used.astype(jnp.int32), axis_name) > 0


def _by_map(name: str, maps: tuple[str, ...], values: list[jax.Array]) -> dict[str, jax.Array]:
    each = {f"{name}_{map_name}": value for map_name, value in zip(maps, values, strict=True)}
    return {name: jnp.stack(values).mean(), **each}


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _maps(outputs: Outputs) -> dict[str, jax.Array]:
    """A network's maps (B, T, H, W, C) by name."""
    numbered = {str(number): x for number, x in enumerate(outputs.maps, start=1)}
    return {**numbered, _POOLED: outputs.embedding[:, None, None, None]}


def _pick(known: dict[str, jax.Array], names: tuple[str, ...], whose: str) -> dict[str, jax.Array]:
    """The named maps, the last three where none are named."""
    numbers = sorted(int(name) for name in known if name != _POOLED)
    for name in names:
        if name not in known:
            raise UserError(
                f"method.maps, method.teacher_maps: the {whose} has no map {name!r}; it has "
                f"{', '.join(map(str, numbers))} and {_POOLED!r}"
            )
    return {name: known[name] for name in names or map(str, numbers[-_DEFAULT_MAPS:])}


def _shapes(module: nn.Module) -> dict[str, jax.Array]:
    """Shapes of a network's maps for some clip: the channels are those of every clip."""
    clips = jax.ShapeDtypeStruct((1, 32, 112, 112, 3), jnp.float32)
    return jax.eval_shape(
        lambda clips: _maps(module.init_with_output(jax.random.key(0), clips, train=False)[0]),
        clips,
    )
