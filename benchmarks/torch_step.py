"""The training step of `benchmarks.train_step` in PyTorch."""

import contextlib
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from benchmarks import train_step as constants


def _mlp(**layers):
    return nn.Sequential(OrderedDict(layers))


def _projector(width, out):
    return _mlp(
        fc1=nn.Linear(width, width, bias=False),
        bn1=nn.BatchNorm1d(width),
        relu1=nn.ReLU(inplace=True),
        fc2=nn.Linear(width, width, bias=False),
        bn2=nn.BatchNorm1d(width),
        relu2=nn.ReLU(inplace=True),
        fc3=nn.Linear(width, out, bias=False),
        bn3=nn.BatchNorm1d(out, affine=False),
    )


def _predictor(width, hidden):
    return _mlp(
        fc1=nn.Linear(width, hidden, bias=False),
        bn1=nn.BatchNorm1d(hidden),
        relu=nn.ReLU(inplace=True),
        fc2=nn.Linear(hidden, width),
    )


class Trained(nn.Module):
    """A network with what its method adds."""

    def __init__(self, network, method):
        super().__init__()
        self.model = network
        if method == "skd_srl":
            self.projector = _projector(network.width, constants.PROJECTOR_OUT)
            self.predictor = _predictor(constants.PROJECTOR_OUT, constants.PREDICTOR_HIDDEN)

    def load(self, name, weights):
        """Takes the weights of skd_jax's model of this name, and of the heads."""
        from skd_jax.models import pretrained

        model = {collection: trees["model"] for collection, trees in weights.items()}
        state = pretrained.to_torch(name, model)
        self.model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        for head, _ in self.named_children():
            if head != "model":
                self._load_head(getattr(self, head), weights["params"][head])

    @staticmethod
    @torch.no_grad()
    def _load_head(module, params):
        for layer, arrays in params.items():
            for leaf, array in arrays.items():
                # A copy: JAX's arrays cannot be written to.
                value = torch.tensor(array.T if leaf == "kernel" else array)
                getattr(getattr(module, layer), "bias" if leaf == "bias" else "weight").copy_(value)


def _supervised(trained, views, labels):
    (clips,) = views
    return functional.cross_entropy(trained.model(clips).float(), labels)


def _skd_srl(trained, views, labels):
    embeddings = [trained.model.features(clips) for clips in views]
    logits = [trained.model.head(e).float() for e in embeddings]
    projections = [trained.projector(e).float() for e in embeddings]
    predictions = [trained.predictor(z).float() for z in projections]

    def distil(student, teacher):
        t = constants.TEMPERATURE
        target = functional.softmax(teacher.detach() / t, dim=1)
        return functional.kl_div(
            functional.log_softmax(student / t, dim=1), target, reduction="batchmean"
        )

    def similarity(prediction, projection):
        return -functional.cosine_similarity(prediction, projection.detach()).mean()

    loss_ce = 0.5 * sum(functional.cross_entropy(q, labels) for q in logits)
    loss_kd = 0.5 * (distil(*logits) + distil(*logits[::-1]))
    loss_sim = 0.5 * (
        similarity(predictions[0], projections[1]) + similarity(predictions[1], projections[0])
    )
    return loss_ce + constants.LAMBDA_KD * loss_kd + constants.LAMBDA_SIM * loss_sim


LOSSES = {"supervised": _supervised, "skd_srl": _skd_srl}


def _augmented(clips, flip, crop):
    """uint8 (B, V, T, S, S, 3) to float (B, V, 3, T, crop, crop)."""
    batch, views, frames, size, *_ = clips.shape
    images = clips.reshape(-1, size, size, 3).permute(0, 3, 1, 2).float() / 255
    images = functional.interpolate(images, (crop, crop), mode="bilinear", antialias=True)
    mirrored = flip[:, :, None].expand(-1, -1, frames).reshape(-1, 1, 1, 1)
    images = torch.where(mirrored, images.flip(3), images)
    mean, std = (
        torch.tensor(v, device=images.device).reshape(3, 1, 1)
        for v in (constants.MEAN, constants.STD)
    )
    images = ((images - mean) / std).reshape(batch, views, frames, 3, crop, crop)
    return images.transpose(2, 3)


def make_step(trained, method, crop, channels_last, dtype, device, compiled):
    """A function of a batch that updates `trained` and returns the loss; `compiled`: by torch.compile."""
    decayed = [p for p in trained.parameters() if p.ndim > 1]
    others = [p for p in trained.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": constants.DECAY}, {"params": others}],
        lr=constants.RATE,
        momentum=constants.MOMENTUM,
        nesterov=True,
    )
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    trained.train()

    def loss_of(batch):
        with torch.no_grad():
            clips = _augmented(batch["clips"], batch["flip"], crop)
            views = [view.contiguous(memory_format=layout) for view in clips.unbind(1)]
        return LOSSES[method](trained, views, batch["label"].long())

    if compiled:
        loss_of = torch.compile(loss_of)

    def step(batch):
        mixed = dtype != "float32"
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = loss_of(batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss

    return step
