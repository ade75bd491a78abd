"""The benchmarked networks in PyTorch, with the module names of their references.

torchvision's video ResNets (`torchvision/models/video/resnet.py`) and MobileNetV2-3D
(okankop/Efficient-3DCNNs, `models/mobilenetv2.py`), so that what `skd_jax` exports fits in: the
benchmark loads it, and compares the losses of the first steps before it times anything.
"""

import functools

import torch
from torch import nn


def conv3x3x3(inputs, features, stride):
    return nn.Conv3d(inputs, features, 3, stride, 1, bias=False)


def conv1x3x3(inputs, features, stride):
    return nn.Conv3d(inputs, features, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)


def conv2plus1d(inputs, features, stride, mid):
    return nn.Sequential(
        conv1x3x3(inputs, mid, stride),
        nn.BatchNorm3d(mid),
        nn.ReLU(inplace=True),
        nn.Conv3d(mid, features, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, features, stride, conv, temporal_stride):
        super().__init__()
        self.conv1 = nn.Sequential(
            conv(inputs, features, stride), nn.BatchNorm3d(features), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(conv(features, features, 1), nn.BatchNorm3d(features))
        self.downsample = None
        if stride != 1 or inputs != features:
            strides = (stride if temporal_stride else 1, stride, stride)
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, features, 1, strides, bias=False), nn.BatchNorm3d(features)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.conv2(self.conv1(x)) + shortcut)


class Network(nn.Module):
    """A classifier in two parts: `features(clips)`, the embedding, and `head(embedding)`."""

    width: int

    def forward(self, clips):
        return self.head(self.features(clips))


class ResNet(Network):
    """R3D-18, MC3-18 or R(2+1)D-18."""

    width = 512

    def __init__(self, stem, convs, num_classes):
        super().__init__()
        self.stem = stem
        inputs = 64
        for stage, (features, conv) in enumerate(zip((64, 128, 256, 512), convs, strict=True), 1):
            blocks = []
            for block in range(2):
                stride = 2 if stage > 1 and block == 0 else 1
                unit = conv
                if conv is conv2plus1d:
                    # As many weights as 3x3x3 of the block's own channels would have.
                    mid = 27 * inputs * features // (9 * inputs + 3 * features)
                    unit = functools.partial(conv2plus1d, mid=mid)
                blocks.append(BasicBlock(inputs, features, stride, unit, conv is not conv1x3x3))
                inputs = features
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, num_classes)

    def features(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return x.mean((2, 3, 4))

    def head(self, x):
        return self.fc(x)


def _stem():
    return nn.Sequential(
        nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


def _factorised_stem():
    return nn.Sequential(
        nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(45),
        nn.ReLU(inplace=True),
        nn.Conv3d(45, 64, (3, 1, 1), (1, 1, 1), (1, 0, 0), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


class InvertedResidual(nn.Module):
    def __init__(self, inputs, features, stride, expansion):
        super().__init__()
        hidden = inputs * expansion
        layers = []
        if expansion != 1:
            layers += [nn.Conv3d(inputs, hidden, 1, bias=False), nn.BatchNorm3d(hidden)]
            layers += [nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv3d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm3d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv3d(hidden, features, 1, bias=False),
            nn.BatchNorm3d(features),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == features

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv_bn(inputs, features, *geometry):
    return nn.Sequential(
        nn.Conv3d(inputs, features, *geometry, bias=False),
        nn.BatchNorm3d(features),
        nn.ReLU6(inplace=True),
    )


class MobileNetV2(Network):
    """MobileNetV2-3D at width 1."""

    width = 1280

    def __init__(self, num_classes):
        super().__init__()
        blocks = [_conv_bn(3, 32, 3, (1, 2, 2), 1)]
        inputs = 32
        for expansion, features, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(count):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(inputs, features, step, expansion))
                inputs = features
        blocks.append(_conv_bn(inputs, 1280, 1))
        self.trunk = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, num_classes))

    def features(self, x):
        return self.trunk(x).mean((2, 3, 4))

    def head(self, x):
        return self.classifier(x)

    def load_state_dict(self, state_dict, strict=True):
        # `features` is the reference's name for what is a method here.
        renamed = {
            key.replace("features.", "trunk.", 1) if key.startswith("features.") else key: value
            for key, value in state_dict.items()
        }
        return super().load_state_dict(renamed, strict)


NETWORKS = {
    "r3d_18": lambda classes: ResNet(_stem(), (conv3x3x3,) * 4, classes),
    "mc3_18": lambda classes: ResNet(_stem(), (conv3x3x3, *(conv1x3x3,) * 3), classes),
    "r2plus1d_18": lambda classes: ResNet(_factorised_stem(), (conv2plus1d,) * 4, classes),
    "mobilenetv2_x1": MobileNetV2,
}
