"""PyTorch checkpoints as variables of this project's models, and back, without PyTorch.

from skd_jax import models
from skd_jax.models import pretrained

state_dict = pretrained.load_state_dict("r3d_18-b3b3357e.pth")
variables = pretrained.from_torch("r3d_18", state_dict, num_classes=101)  # a new head
model = models.create("r3d_18", num_classes=101)
recipe = pretrained.preprocessing("r3d_18")  # what the clips must go through
outputs = model.apply(variables, clips, train=False)

pretrained.save_torch("mine.pth", pretrained.to_torch("r3d_18", variables))

Names come from the models' own trees by one rule for each family (`Entry.torch`): torchvision's for
r3d, mc3, r2plus1d, s3d; 3D-ResNets-PyTorch's for resnet3d; pytorchvideo's for X3D, SlowFast, I3D,
Slow and ir-CSN; VMZ's for ip-CSN; Efficient-3DCNNs' for the mobile networks.
"""

from skd_jax.models.pretrained.convert import from_torch, to_torch
from skd_jax.models.pretrained.files import load_state_dict
from skd_jax.models.pretrained.preprocessing import Preprocessing, preprocessing
from skd_jax.models.pretrained.writer import save_torch

__all__ = [
    "Preprocessing",
    "from_torch",
    "load_state_dict",
    "preprocessing",
    "save_torch",
    "to_torch",
]
