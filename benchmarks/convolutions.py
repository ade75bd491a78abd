"""Milliseconds of every way to compute a convolution and its two gradients: what chose the lowerings.

    python -m benchmarks.convolutions

For the convolutions of R3D-18 and R(2+1)D-18 at 8 x 112 x 112 and a batch of 4, each form of `skd_jax/models/folded.py`,
oneDNN's convolution (`direct`) and the plain 3-D one, forward, towards the clips and towards the kernel; `forward_form`,
`clip_gradient_form` and `conv3d.choose_lowering` hold what came out quickest on two CPU cores. The
quickest of several runs counts. GFLOP/s of the convolution as written stand behind the times.
"""

import argparse
import functools
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from skd_jax import memory
from skd_jax.models import conv3d, direct, folded, onednn

# name: clips, kernel, strides, padding
CASES = {
    "stem": ((4, 8, 112, 112, 3), (3, 7, 7, 3, 64), (1, 2, 2), (1, 3, 3)),
    "layer1": ((4, 8, 56, 56, 64), (3, 3, 3, 64, 64), (1, 1, 1), (1, 1, 1)),
    "layer2, strided": ((4, 8, 56, 56, 64), (3, 3, 3, 64, 128), (2, 2, 2), (1, 1, 1)),
    "layer2": ((4, 4, 28, 28, 128), (3, 3, 3, 128, 128), (1, 1, 1), (1, 1, 1)),
    "layer3": ((4, 2, 14, 14, 256), (3, 3, 3, 256, 256), (1, 1, 1), (1, 1, 1)),
    "layer4": ((4, 1, 7, 7, 512), (1, 3, 3, 512, 512), (1, 1, 1), (0, 1, 1)),
    "spatial": ((4, 8, 56, 56, 64), (1, 3, 3, 64, 144), (1, 1, 1), (0, 1, 1)),
    "temporal": ((4, 8, 56, 56, 144), (3, 1, 1, 144, 64), (1, 1, 1), (1, 0, 0)),
}
PLAIN = functools.partial(conv3d.conv3d, lowering="plain")
FORMS = {
    "side_by_side": folded.side_by_side,
    "spread": folded.spread,
    "phased": folded.phased,
    "over_time": folded.over_time,
    "direct": direct.direct,
    "plain": PLAIN,
}


def able(form, kernel_shape, strides):
    """Whether a form can compute such a convolution, and is another than the rest."""
    if form == "over_time":
        return kernel_shape[1:3] == (1, 1)
    if form == "direct":
        return onednn.available()
    if form == "phased":
        return strides[1:] != (1, 1)
    return form != "spread" or kernel_shape[0] > 1


def milliseconds(function, *arrays, runs):
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arrays))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(shape, kernel_shape, strides, padding, forms, runs):
    """Rows (form, [forward, towards clips, towards kernel]) in milliseconds, and the FLOPs of one."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in (shape, kernel_shape))
    output = jax.eval_shape(lambda x, k: PLAIN(x, k, strides, padding), x, kernel)
    gradient = jnp.asarray(rng.standard_normal(output.shape, np.float32))
    rows = []
    for name in forms:
        if not able(name, kernel_shape, strides):
            continue

        def compute(x, kernel, form=FORMS[name]):
            return form(x, kernel, strides, padding)

        def towards(number, x, kernel, gradient, compute=compute):
            return jax.vjp(compute, x, kernel)[1](gradient)[number]

        rows.append(
            (
                name,
                [
                    milliseconds(compute, x, kernel, runs=runs),
                    *(
                        milliseconds(functools.partial(towards, n), x, kernel, gradient, runs=runs)
                        for n in (0, 1)
                    ),
                ],
            )
        )
    written = functools.partial(
        folded.kernel_gradient, kernel_shape=kernel_shape, strides=strides, padding=padding
    )
    rows.append(("written", [None, None, milliseconds(written, x, gradient, runs=runs)]))
    return rows, 2 * output.size * math.prod(kernel_shape[:4])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=CASES)
    parser.add_argument("--forms", nargs="+", default=tuple(FORMS), choices=FORMS)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    memory.keep_freed_memory()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: ms (GFLOP/s)")
    heads = ("forward", "towards clips", "towards kernel")
    print(f"{'':18}{'':14}" + "".join(f"{head:>18}" for head in heads))
    for case in options.cases:
        rows, flops = measure(*CASES[case], options.forms, options.runs)
        for name, times in rows:
            cells = [f"{t:9.1f} ({flops / t / 1e6:5.0f})" if t else "" for t in times]
            print(f"{case:18}{name:14}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
