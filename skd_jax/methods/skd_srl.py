"""SKD-SRL: self-knowledge distillation with Siamese representation learning."""

import dataclasses

import jax
import jax.numpy as jnp

from skd_jax import losses
from skd_jax.errors import UserError
from skd_jax.methods import base, diagnostics, past
from skd_jax.models import heads


@dataclasses.dataclass(frozen=True)
class SKDSRL(base.Method):
    """Two views of a video teach each other by soft labels and by a Siamese similarity.

    Vu, Phung and Wang, "Self-Knowledge Distillation via Siamese Representation Learning for Action
    Recognition", VCIP 2021 (arXiv 2209.01311). Of the paper only the abstract and the opening of
    the introduction were at hand: they say that the difference between the representation vectors
    of two views is minimised and that soft-label distillation is used beside it. What follows is
    therefore a RECONSTRUCTION, not the paper's equations:

        q_i = fc(f(x_i)),   z_i = projector(f(x_i)),   p_i = predictor(z_i),   i = 1, 2
        L_ce  = 1/2 [CE(q_1, y) + CE(q_2, y)]
        L_kd  = 1/2 [KL(sg s(q_2/T) || s(q_1/T)) + KL(sg s(q_1/T) || s(q_2/T))]   (times T^2 if asked)
        L_sim = 1/2 [D(p_1, sg z_2) + D(p_2, sg z_1)],   D(p, z) = -cos(p, z)
        L = L_ce + lambda_kd L_kd + lambda_sim L_sim

    with s the softmax and sg the stop-gradient. Projector and predictor are SimSiam's (Chen and He,
    CVPR 2021) and are dropped after training; weight decay is the optimiser's.

    Where each default comes from: temperature 10, lambda_kd 0.1 and no T^2 are those of the same
    authors' earlier method (code of "Teaching Yourself", IEEE Access 2021). Stopped soft labels,
    separate BatchNorm passes, the predictor and its constant learning rate are SimSiam's habits. The
    narrow projector and the predictor's bottleneck of a quarter of it (SimSiam's share) are this
    project's choice. lambda_sim 0.05, two clips of a video and views apart come from a sweep on the
    validation videos of configs/ucf101_tiny.py at 20 epochs, two to four seeds a setting
    (docs/results/ucf101_tiny_20_epochs_sweep.md), and stayed after two smaller ones at 40
    (ucf101_tiny_sweep.md, ucf101_tiny_sweep_later.md). None tells settings apart: their means differ by less than what seeds
    and, with the same seeds, another version of the code make of one setting (up to 0.1).

    These defaults are weak. Without T^2 the soft labels' gradient shrinks as 1 / T^2: on that recipe,
    at 20 epochs, the term ended at 0.001 of the cross-entropy, and without it a run ended with the same
    divergence of the views. lambda_kd 1 with T 4 and T^2, about the weight that `ddgsd` and `kd` have,
    made it 0.6 of the cross-entropy at the end of 40 epochs.

    SimSiam's zero-initialised residual blocks are not used: the network is the one that supervision
    trains.

    Attributes:
      temperature: T, softens the labels that the views exchange.
      lambda_kd: weight of L_kd.
      scale_by_t2: multiply L_kd by T^2 (Hinton et al., 2015).
      stop_gradient_labels: treat the other view's soft labels as constants.
      lambda_sim: weight of L_sim.
      use_predictor: False compares projections directly, p_i = z_i.
      constant_predictor_lr: keep the predictor's learning rate at its peak (SimSiam --fix-pred-lr).
      projector_hidden: width of the projector's hidden layers; 0 takes the embedding's width.
      projector_out: width of the projections z.
      predictor_hidden: width of the predictor's bottleneck; 0 takes a quarter of projector_out.
      ramp_up: share of the training in which lambda_kd and lambda_sim rise linearly from 0, as labels
        and views of an untrained network have little to teach (Laine and Aila, ICLR 2017, ramp
        their consistency term up too, along another curve); 0 gives both in full from the first step.
      views_together: both views pass through BatchNorm as one batch; False is a pass per view.
      label_smoothing: of L_ce.
      past_teacher: weight of a further term, the divergence from the best past model's soft labels
        at T, as in the authors' Teaching Yourself; 0 leaves it out. See `past`.
    """

    temperature: float = 10.0
    lambda_kd: float = 0.1
    scale_by_t2: bool = False
    stop_gradient_labels: bool = True
    lambda_sim: float = 0.05
    use_predictor: bool = True
    constant_predictor_lr: bool = True
    projector_hidden: int = 0
    projector_out: int = 512
    predictor_hidden: int = 128
    ramp_up: float = 0.0
    views_together: bool = False
    label_smoothing: float = 0.0
    past_teacher: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.projector_out < 1:
            raise UserError(f"method.projector_out must be at least 1, got {self.projector_out}")
        base.not_negative(self, "projector_hidden", "predictor_hidden")
        if not 0 <= self.ramp_up <= 1:
            raise UserError(f"method.ramp_up must be between 0 and 1, got {self.ramp_up}")
        if self.past_teacher < 0:
            raise UserError(f"method.past_teacher must not be negative, got {self.past_teacher}")

    @property
    def num_views(self) -> int:
        return 2

    @property
    def constant_lr(self) -> tuple[str, ...]:
        return ("predictor",) if self.use_predictor and self.constant_predictor_lr else ()

    @property
    def needs_validation(self) -> bool:
        return self.past_teacher > 0

    def init_state(self, variables):
        return past.start(variables) if self.past_teacher > 0 else {}

    def after_evaluation(self, state, variables, improved):
        return past.swap(state, variables, improved) if self.past_teacher > 0 else state

    def _heads(self, bn_axis: str | None) -> dict:
        options = {"dtype": self.model.dtype, "axis_name": bn_axis}
        networks = {
            "projector": heads.Projector(
                features=self.projector_out, hidden=self.projector_hidden or None, **options
            )
        }
        if self.use_predictor:
            networks["predictor"] = heads.Predictor(hidden=self.predictor_hidden or None, **options)
        return networks

    def init(self, rng, clips):
        variables = self.model.init({"params": rng}, clips, train=False)
        # Only the embedding's shape is needed: no forward pass is compiled for it.
        shape = jax.eval_shape(
            lambda: self.model.apply(variables, clips, train=False).embedding
        ).shape
        trees, inputs = {"model": variables}, jnp.zeros(shape)
        for i, (name, module) in enumerate(self._heads(None).items()):
            trees[name] = module.init(jax.random.fold_in(rng, i), inputs, train=False)
            inputs = jnp.zeros((1, self.projector_out))
        return base.nest(trees)

    def loss(self, variables, batch, state, rng, progress, axis_name):
        outputs, model_stats = base.classifier_views(
            self,
            variables,
            batch["clips"],
            together=self.views_together,
            rng=rng,
            axis_name=axis_name,
        )
        stats = {"model": model_stats}
        networks = self._heads(axis_name if self.sync_batch_norm else None)
        z = p = outputs.embedding
        for name, module in networks.items():
            p, stats[name] = base.apply_views(
                module, base.network(variables, name), p, together=self.views_together
            )
            z = p if name == "projector" else z

        q1, q2 = outputs.logits[:, 0], outputs.logits[:, 1]
        # The labels a view receives are targets: without the stop, the confident view could also
        # lower the loss by moving towards the unsure one.
        stop = jax.lax.stop_gradient if self.stop_gradient_labels else (lambda x: x)

        def distil(student, teacher):
            return losses.soft_label_distillation(
                student, stop(teacher), self.temperature, self.scale_by_t2
            ).mean()

        def classify(logits):
            return losses.cross_entropy(logits, batch["label"], self.label_smoothing).mean()

        loss_ce = 0.5 * (classify(q1) + classify(q2))
        loss_kd = 0.5 * (distil(q1, q2) + distil(q2, q1))
        loss_sim = 0.5 * (
            losses.siamese_similarity(p[:, 0], z[:, 1]).mean()
            + losses.siamese_similarity(p[:, 1], z[:, 0]).mean()
        )
        risen = jnp.minimum(1.0, progress / self.ramp_up) if self.ramp_up else 1.0
        loss = loss_ce + risen * (self.lambda_kd * loss_kd + self.lambda_sim * loss_sim)
        # Cross-entropy keeps the embedding from collapsing; the projections have no such guard.
        projection_std, projection_rank = diagnostics.spread_and_rank(z, axis_name)
        metrics = {
            "loss": loss,
            "loss_ce": loss_ce,
            "loss_kd": loss_kd,
            "loss_sim": loss_sim,
            "top1": diagnostics.accuracy(outputs.logits, batch["label"]),
            **diagnostics.view_metrics(outputs.logits, outputs.embedding, axis_name),
            "projection_std": projection_std,
            "projection_rank": projection_rank,
        }
        if self.past_teacher > 0:
            loss_past = past.distil(
                self, state, batch["clips"], outputs.logits, self.temperature, self.scale_by_t2
            )
            loss = loss + self.past_teacher * loss_past
            metrics |= {"loss": loss, "loss_past": loss_past}
        return loss, (metrics, stats, state)
