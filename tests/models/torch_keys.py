"""Keys and shapes of the PyTorch implementations' state dicts, written down from their sources.

Independent of the rules in the families: each generator follows the constructors of its source and
yields (key, shape) in the order of `state_dict()`.
"""

import math


def conv(name, i, o, kernel, groups=1, bias=False):
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    yield f"{name}.weight", (o, i // groups, *kernel)
    if bias:
        yield f"{name}.bias", (o,)


def norm(name, channels):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def linear(name, i, o):
    yield f"{name}.weight", (o, i)
    yield f"{name}.bias", (o,)


def conv_norm(conv_name, norm_name, i, o, kernel, groups=1):
    yield from conv(conv_name, i, o, kernel, groups)
    yield from norm(norm_name, o)


def sequential(name, *layers):
    """(place, i, o, kernel, groups): a convolution at `place` and its BatchNorm at the next."""
    for place, i, o, kernel, groups in layers:
        yield from conv_norm(f"{name}.{place}", f"{name}.{place + 1}", i, o, kernel, groups)


def video_resnet(kind, sizes, classes):
    """torchvision.models.video.resnet; kinds "r3d", "mc3", "r2plus1d", and VMZ's "ipcsn"."""
    if kind == "r2plus1d":
        yield from sequential("stem", (0, 3, 45, (1, 7, 7), 1), (3, 45, 64, (3, 1, 1), 1))
    else:
        yield from conv_norm("stem.0", "stem.1", 3, 64, (3, 7, 7))
    inputs, expansion = 64, 4 if kind == "ipcsn" else 1
    for stage, size in enumerate(sizes, start=1):
        planes = 32 * 2**stage
        for block in range(size):
            name = f"layer{stage}.{block}"
            if kind == "ipcsn":
                yield from conv_norm(f"{name}.conv1.0", f"{name}.conv1.1", inputs, planes, 1)
                yield from sequential(f"{name}.conv2.0", (0, planes, planes, 1, 1))
                yield from conv(f"{name}.conv2.0.2", planes, planes, 3, groups=planes)
                yield from norm(f"{name}.conv2.1", planes)
                yield from conv_norm(f"{name}.conv3.0", f"{name}.conv3.1", planes, 4 * planes, 1)
            else:
                mid = inputs * planes * 27 // (inputs * 9 + 3 * planes)
                for n, i in ((1, inputs), (2, planes)):
                    at = f"{name}.conv{n}"
                    if kind == "r2plus1d":
                        yield from sequential(f"{at}.0", (0, i, mid, (1, 3, 3), 1))
                        yield from conv(f"{at}.0.3", mid, planes, (3, 1, 1))
                    else:
                        flat = kind == "mc3" and stage > 1
                        yield from conv(f"{at}.0", i, planes, (1, 3, 3) if flat else 3)
                    yield from norm(f"{at}.1", planes)
            outputs = planes * expansion
            if block == 0 and (stage > 1 or inputs != outputs):
                down = f"{name}.downsample"
                yield from conv_norm(f"{down}.0", f"{down}.1", inputs, outputs, 1)
            inputs = outputs
    yield from linear("fc", inputs, classes)


def s3d(classes):
    """torchvision.models.video.s3d."""

    def separable(name, i, o, k):
        yield from conv_norm(f"{name}.0.0", f"{name}.0.1", i, o, (1, k, k))
        yield from conv_norm(f"{name}.1.0", f"{name}.1.1", o, o, (k, 1, 1))

    yield from separable("features.0", 3, 64, 7)
    yield from conv_norm("features.2.0", "features.2.1", 64, 64, 1)
    yield from separable("features.3", 64, 192, 3)
    i = 192
    for place, b0, m1, b1, m2, b2, b3 in (
        (5, 64, 96, 128, 16, 32, 32),
        (6, 128, 128, 192, 32, 96, 64),
        (8, 192, 96, 208, 16, 48, 64),
        (9, 160, 112, 224, 24, 64, 64),
        (10, 128, 128, 256, 24, 64, 64),
        (11, 112, 144, 288, 32, 64, 64),
        (12, 256, 160, 320, 32, 128, 128),
        (14, 256, 160, 320, 32, 128, 128),
        (15, 384, 192, 384, 48, 128, 128),
    ):
        at = f"features.{place}"
        yield from conv_norm(f"{at}.branch0.0", f"{at}.branch0.1", i, b0, 1)
        for branch, mid, o in ((1, m1, b1), (2, m2, b2)):
            first = f"{at}.branch{branch}.0"
            yield from conv_norm(f"{first}.0", f"{first}.1", i, mid, 1)
            yield from separable(f"{at}.branch{branch}.1", mid, o, 3)
        yield from conv_norm(f"{at}.branch3.1.0", f"{at}.branch3.1.1", i, b3, 1)
        i = b0 + b1 + b2 + b3
    yield from conv("classifier.1", i, classes, 1, bias=True)


def hara(sizes, bottleneck, classes, shortcut="B"):
    """kenshohara/3D-ResNets-PyTorch, models/resnet.py."""
    yield from conv_norm("conv1", "bn1", 3, 64, 7)
    inputs = 64
    for stage, size in enumerate(sizes, start=1):
        planes = 32 * 2**stage
        outputs = planes * (4 if bottleneck else 1)
        for block in range(size):
            name = f"layer{stage}.{block}"
            if bottleneck:
                layers = ((inputs, planes, 1), (planes, planes, 3), (planes, outputs, 1))
            else:
                layers = ((inputs, planes, 3), (planes, planes, 3))
            for n, (i, o, kernel) in enumerate(layers, start=1):
                yield from conv_norm(f"{name}.conv{n}", f"{name}.bn{n}", i, o, kernel)
            if shortcut == "B" and block == 0 and (stage > 1 or inputs != outputs):
                down = f"{name}.downsample"
                yield from conv_norm(f"{down}.0", f"{down}.1", inputs, outputs, 1)
            inputs = outputs
    yield from linear("fc", inputs, classes)


def hara_2p1d(sizes, bottleneck, classes):
    """kenshohara/3D-ResNets-PyTorch, models/resnet2p1d.py."""

    def pair(at, n, i, o, taps, side):
        mid = i * o * taps * side**2 // (i * side**2 + taps * o)
        yield from conv_norm(f"{at}conv{n}_s", f"{at}bn{n}_s", i, mid, (1, side, side))
        yield from conv_norm(f"{at}conv{n}_t", f"{at}bn{n}_t", mid, o, (taps, 1, 1))

    yield from pair("", 1, 3, 64, 7, 7)
    inputs = 64
    for stage, size in enumerate(sizes, start=1):
        planes = 32 * 2**stage
        outputs = planes * (4 if bottleneck else 1)
        for block in range(size):
            at = f"layer{stage}.{block}."
            if bottleneck:
                yield from conv_norm(f"{at}conv1", f"{at}bn1", inputs, planes, 1)
                yield from pair(at, 2, planes, planes, 3, 3)
                yield from conv_norm(f"{at}conv3", f"{at}bn3", planes, outputs, 1)
            else:
                yield from pair(at, 1, inputs, planes, 3, 3)
                yield from pair(at, 2, planes, planes, 3, 3)
            if block == 0 and (stage > 1 or inputs != outputs):
                down = f"{at}downsample"
                yield from conv_norm(f"{down}.0", f"{down}.1", inputs, outputs, 1)
            inputs = outputs
    yield from linear("fc", inputs, classes)


def res_stage(name, size, inputs, outputs, taps, kernel_b, depthwise=False):
    """pytorchvideo create_res_stage with create_bottleneck_block; `taps` of conv_a, in turn."""
    inner = outputs // 4
    for block in range(size):
        at = f"{name}.res_blocks.{block}"
        if block == 0:
            yield from conv_norm(f"{at}.branch1_conv", f"{at}.branch1_norm", inputs, outputs, 1)
        for part, i, o, kernel, groups in (
            ("a", inputs, inner, (taps[block % len(taps)], 1, 1), 1),
            ("b", inner, inner, kernel_b, inner if depthwise else 1),
            ("c", inner, outputs, 1, 1),
        ):
            branch = f"{at}.branch2"
            yield from conv_norm(
                f"{branch}.conv_{part}", f"{branch}.norm_{part}", i, o, kernel, groups
            )
        inputs = outputs


def res_net(sizes, stem, taps, numbers, kernel_b, classes, depthwise=False):
    """pytorchvideo create_resnet and create_csn; `numbers` of the stages' and the head's blocks."""
    yield from conv_norm("blocks.0.conv", "blocks.0.norm", 3, 64, stem)
    inputs = 64
    for stage, size in enumerate(sizes):
        outputs = 256 * 2**stage
        yield from res_stage(
            f"blocks.{numbers[stage]}", size, inputs, outputs, taps[stage], kernel_b, depthwise
        )
        inputs = outputs
    yield from linear(f"blocks.{numbers[-1]}.proj", inputs, classes)


def slowfast(fusion_taps, classes):
    """pytorchvideo create_slowfast, R50."""

    def fusion(stage, fast):
        at = f"blocks.{stage}.multipathway_fusion"
        yield from conv_norm(
            f"{at}.conv_fast_to_slow", f"{at}.norm", fast, 2 * fast, (fusion_taps, 1, 1)
        )

    pathways = "blocks.{}.multipathway_blocks.{}"
    for way, channels, taps in ((0, 64, 1), (1, 8, 5)):
        at = pathways.format(0, way)
        yield from conv_norm(f"{at}.conv", f"{at}.norm", 3, channels, (taps, 7, 7))
    yield from fusion(0, 8)
    slow, fast = 64, 8
    for stage, size in enumerate((3, 4, 6, 3), start=1):
        outputs = 128 * 2**stage
        for way, i, o, taps in (
            (0, slow + 2 * fast, outputs, 1 if stage < 3 else 3),
            (1, fast, outputs // 8, 3),
        ):
            yield from res_stage(pathways.format(stage, way), size, i, o, (taps,), (1, 3, 3))
        slow, fast = outputs, outputs // 8
        if stage < 4:
            yield from fusion(stage, fast)
    yield from linear("blocks.6.proj", slow + fast, classes)


def x3d(sizes, classes):
    """pytorchvideo create_x3d."""
    yield from conv("blocks.0.conv.conv_t", 3, 24, (1, 3, 3))
    yield from conv("blocks.0.conv.conv_xy", 24, 24, (5, 1, 1), groups=24)
    yield from norm("blocks.0.norm", 24)
    inputs = 24
    for stage, (size, outputs) in enumerate(zip(sizes, (24, 48, 96, 192), strict=True), start=1):
        inner = int(2.25 * outputs)
        reduced = {54: 8, 108: 8, 216: 16, 432: 32}[inner]  # round_width(inner, 0.0625)
        for block in range(size):
            at = f"blocks.{stage}.res_blocks.{block}"
            if block == 0:
                yield from conv(f"{at}.branch1_conv", inputs, outputs, 1)
                if inputs != outputs:
                    yield from norm(f"{at}.branch1_norm", outputs)
            at += ".branch2"
            yield from conv_norm(f"{at}.conv_a", f"{at}.norm_a", inputs, inner, 1)
            yield from conv_norm(f"{at}.conv_b", f"{at}.norm_b.0", inner, inner, 3, inner)
            if block % 2 == 0:
                yield from conv(f"{at}.norm_b.1.block.0", inner, reduced, 1, bias=True)
                yield from conv(f"{at}.norm_b.1.block.2", reduced, inner, 1, bias=True)
            yield from conv_norm(f"{at}.conv_c", f"{at}.norm_c", inner, outputs, 1)
            inputs = outputs
    yield from conv_norm("blocks.5.pool.pre_conv", "blocks.5.pool.pre_norm", 192, 432, 1)
    yield from conv("blocks.5.pool.post_conv", 432, 2048, 1)
    yield from linear("blocks.5.proj", 2048, classes)


def mobilenet_v2(width, classes):
    """okankop/Efficient-3DCNNs, models/mobilenetv2.py."""
    inputs, number = int(32 * width), 1
    yield from sequential("features.0", (0, 3, inputs, 3, 1))
    for expansion, channels, size in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        outputs = int(channels * width)
        for _ in range(size):
            hidden = inputs * expansion
            layers = [(inputs, hidden, 1, 1)] * (expansion > 1)
            layers += [(hidden, hidden, 3, hidden), (hidden, outputs, 1, 1)]
            yield from sequential(
                f"features.{number}.conv", *((3 * n, *layer) for n, layer in enumerate(layers))
            )
            inputs, number = outputs, number + 1
    yield from sequential(f"features.{number}", (0, inputs, 1280, 1, 1))
    yield from linear("classifier.1", 1280, classes)


def shufflenet_v2(channels, classes):
    """okankop/Efficient-3DCNNs, models/shufflenetv2.py."""
    yield from sequential("conv1", (0, 3, 24, 3, 1))
    inputs, number = 24, 0
    *stages, last = channels
    for outputs, size in zip(stages, (4, 8, 4), strict=True):
        half = outputs // 2
        for block in range(size):
            at = f"features.{number}"
            if block == 0:
                yield from sequential(
                    f"{at}.banch1", (0, inputs, inputs, 3, inputs), (2, inputs, half, 1, 1)
                )
            first = inputs if block == 0 else half
            yield from sequential(
                f"{at}.banch2",
                (0, first, half, 1, 1),
                (3, half, half, 3, half),
                (5, half, half, 1, 1),
            )
            inputs, number = outputs, number + 1
    yield from sequential("conv_last", (0, inputs, last, 1, 1))
    yield from linear("classifier.1", last, classes)


_SIZES = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


def reference(name, classes):
    """[(key, shape)] of the state dict of the model that `name` stands for."""
    family, _, rest = name.partition("_")
    depth = int(rest) if rest.isdigit() else 50
    sizes = _SIZES[depth]
    if family in ("r3d", "mc3", "r2plus1d", "ipcsn"):
        return [*video_resnet(family, sizes, classes)]
    if family == "s3d":
        return [*s3d(classes)]
    if family == "resnet3d":
        return [*hara(sizes, depth >= 50, classes)]
    if family == "resnet2p1d":
        return [*hara_2p1d(sizes, depth >= 50, classes)]
    if family == "ircsn":
        taps, numbers = ((1,),) * 4, (1, 2, 3, 4, 5)
        return [*res_net(sizes, (3, 7, 7), taps, numbers, 3, classes, depthwise=True)]
    if family == "slow":
        taps, numbers = ((1,), (1,), (3,), (3,)), (1, 2, 3, 4, 5)
        return [*res_net(sizes, (1, 7, 7), taps, numbers, (1, 3, 3), classes)]
    if family == "i3d":
        taps, numbers = ((3,), (3, 1), (3, 1), (1, 3)), (1, 3, 4, 5, 6)
        return [*res_net(sizes, (5, 7, 7), taps, numbers, (1, 3, 3), classes)]
    if family == "slowfast":
        return [*slowfast(7 if name.endswith("8x8") else 5, classes)]
    if family == "x3d":
        factor = 5.0 if rest == "l" else 2.2
        return [*x3d([math.ceil(factor * n) for n in (1, 2, 5, 3)], classes)]
    if family == "mobilenetv2":
        return [*mobilenet_v2(float(rest[1:].replace("_", ".")), classes)]
    channels = {
        "x0_25": (32, 64, 128, 1024),
        "x0_5": (48, 96, 192, 1024),
        "x1": (116, 232, 464, 1024),
        "x1_5": (176, 352, 704, 1024),
        "x2": (224, 488, 976, 2048),
    }
    return [*shufflenet_v2(channels[rest], classes)]
