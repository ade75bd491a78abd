"""Milliseconds of every way to compute a convolution and its gradients: what chooses the lowerings.

    python -m benchmarks.convolutions --markdown benchmarks/convolutions.md
    python -m benchmarks.convolutions --dtype bfloat16 --model r3d_18 --clips 32x16x112x112

The convolutions are those of R3D-18, R(2+1)D-18 and MC3-18 at 8 x 112 x 112 and a batch of 4, with
pointwise, depthwise, grouped and few-channel ones; with --model every convolution of a model at the
size of --clips. Two tables come out of it:

lowerings  every lowering of `skd_jax/models/conv3d.py` that can compute the convolution on this
           backend, forward and both gradients in one program, as a training step runs them; the one
           that `skd_jax/models/choices.py` chooses is marked
forms      the forms of `skd_jax/models/folded.py` beside oneDNN's convolution (direct) and XLA's own
           (plain): forward, gradient towards the clips, towards the kernel. "written" is
           `folded.kernel_gradient`. `choices.FORWARD_FORMS` and `CLIP_GRADIENT_FORMS` choose from it

The quickest of several runs counts. GFLOP/s are those of the convolution as written. --markdown keeps the
sections of other machines and dtypes that the file holds already.
"""

import argparse
import collections
import functools
import math
import os
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from skd_jax import memory, models
from skd_jax.models import choices, conv3d, direct, folded, onednn
from skd_jax.models.choices import Convolution


class Case(NamedTuple):
    """A convolution of clips (B, T, H, W, C)."""

    clips: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    groups: int = 1

    def convolution(self, dtype) -> Convolution:
        return Convolution(*self[1:], jnp.dtype(dtype))


_ONE, _TWO, _SAME = (1, 1, 1), (2, 2, 2), (1, 1, 1)
CASES = {
    "stem": Case((4, 8, 112, 112, 3), (3, 7, 7, 3, 64), (1, 2, 2), (1, 3, 3)),
    "layer1": Case((4, 8, 56, 56, 64), (3, 3, 3, 64, 64), _ONE, _SAME),
    "layer2, strided": Case((4, 8, 56, 56, 64), (3, 3, 3, 64, 128), _TWO, _SAME),
    "layer2": Case((4, 4, 28, 28, 128), (3, 3, 3, 128, 128), _ONE, _SAME),
    "layer3": Case((4, 2, 14, 14, 256), (3, 3, 3, 256, 256), _ONE, _SAME),
    "layer4": Case((4, 1, 7, 7, 512), (1, 3, 3, 512, 512), _ONE, (0, 1, 1)),
    "spatial": Case((4, 8, 56, 56, 64), (1, 3, 3, 64, 144), _ONE, (0, 1, 1)),
    "temporal": Case((4, 8, 56, 56, 144), (3, 1, 1, 144, 64), _ONE, (1, 0, 0)),
    "MC3 layer2": Case((4, 8, 28, 28, 128), (1, 3, 3, 128, 128), _ONE, (0, 1, 1)),
    "MC3 layer3": Case((4, 8, 14, 14, 256), (1, 3, 3, 256, 256), _ONE, (0, 1, 1)),
    "MC3 layer4": Case((4, 8, 7, 7, 512), (1, 3, 3, 512, 512), _ONE, (0, 1, 1)),
    "16 channels": Case((4, 8, 56, 56, 16), (3, 3, 3, 16, 16), _ONE, _SAME),
    "pointwise": Case((4, 8, 28, 28, 32), (1, 1, 1, 32, 192)),
    "pointwise, strided": Case((4, 8, 56, 56, 64), (1, 1, 1, 64, 128), _TWO),
    "depthwise": Case((4, 4, 28, 28, 144), (3, 3, 3, 1, 144), _ONE, _SAME, 144),
    "depthwise, strided": Case((4, 8, 56, 56, 96), (3, 3, 3, 1, 96), _TWO, _SAME, 96),
    "grouped": Case((4, 4, 28, 28, 120), (3, 3, 3, 40, 120), _ONE, _SAME, 3),
}
FORMS = {
    "side_by_side": folded.side_by_side,
    "spread": folded.spread,
    "phased": folded.phased,
    "over_time": folded.over_time,
    "direct": direct.direct,
    "plain": functools.partial(conv3d.conv3d, lowering="plain"),
}
HEADS = ("forward", "towards clips", "towards kernel")


def able(form, case, dtype):
    """Whether a form can compute such a convolution here, and is another than the rest."""
    convolution = case.convolution(dtype)
    if form == "plain":
        return True
    if form == "direct":
        return choices.onednn_computes(convolution)
    if case.groups > 1:
        return form == "side_by_side"
    if form == "over_time":
        return choices.over_time_alone(convolution)
    if form == "phased":
        return choices.strided_in_space(convolution)
    return form == "side_by_side" or case.kernel[0] > 1


def lowerings(case, dtype):
    """Names of the lowerings that can compute a convolution on this backend."""
    convolution = case.convolution(dtype)
    fits = {
        "depthwise": choices.one_kernel_per_channel,
        "matmul": choices.pointwise,
        "direct": choices.onednn_computes,
        "temporal": choices.over_time_alone,
    }
    return [name for name in conv3d.LOWERINGS if fits.get(name, choices.every)(convolution)]


def milliseconds(function, *arrays, runs, seconds=2.0):
    """Of the quickest of at most so many runs, within so many seconds; NaN where the device cannot."""
    try:
        compiled = jax.jit(function).lower(*arrays).compile()
        first = _elapsed(compiled, arrays, 1)
        first = min(first, _elapsed(compiled, arrays, 1))
        # What takes microseconds is run several times in a row: starting it takes as long.
        count = max(1, min(100, round(0.02 / first)))
        times, end = [], time.perf_counter() + seconds
        while not times or (len(times) < runs and time.perf_counter() < end):
            times.append(_elapsed(compiled, arrays, count) / count)
    except jax.errors.JaxRuntimeError as error:
        print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)
        return math.nan
    return 1e3 * min(times)


def _elapsed(compiled, arrays, count):
    start = time.perf_counter()
    for _ in range(count):
        result = compiled(*arrays)
    jax.block_until_ready(result)
    return time.perf_counter() - start


def draw(case, dtype):
    """Clips, kernel and a gradient towards the output, from a normal distribution."""
    rng = np.random.default_rng(0)
    x, kernel = (_normal(rng, shape, dtype) for shape in case[:2])
    output = jax.eval_shape(functools.partial(_lowered, case, "plain"), x, kernel)
    return x, kernel, _normal(rng, output.shape, dtype)


def _normal(rng, shape, dtype):
    return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)


def _lowered(case, lowering, x, kernel):
    return conv3d.conv3d(x, kernel, *case[2:], lowering=lowering)


def flops(case):
    """Of the forward pass."""
    counts = (
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(
            case.clips[1:4], case.kernel[:3], case.strides, case.padding, strict=True
        )
    )
    return 2 * case.clips[0] * math.prod(counts) * math.prod(case.kernel)


def measure_lowerings(case, dtype, runs):
    """{lowering: milliseconds} of the forward pass and both gradients in one program."""
    x, kernel, gradient = draw(case, dtype)
    # A network's clips themselves need no gradient.
    wanted = (1,) if case.clips[-1] == 3 else (0, 1)

    def step(x, kernel, gradient, lowering):
        y, pull_back = jax.vjp(functools.partial(_lowered, case, lowering), x, kernel)
        found = pull_back(gradient)
        return y, [found[i] for i in wanted]

    return {
        name: milliseconds(functools.partial(step, lowering=name), x, kernel, gradient, runs=runs)
        for name in lowerings(case, dtype)
    }


def measure_forms(case, dtype, runs):
    """{form: [forward, towards clips, towards kernel]} in milliseconds."""
    x, kernel, gradient = draw(case, dtype)
    found = {}
    for name, form in FORMS.items():
        if not able(name, case, dtype):
            continue
        grouped = {"groups": case.groups} if case.groups > 1 else {}

        def compute(x, kernel, form=form, grouped=grouped):
            return form(x, kernel, case.strides, case.padding, **grouped)

        def towards(number, x, kernel, gradient, compute=compute):
            return jax.vjp(compute, x, kernel)[1](gradient)[number]

        found[name] = [milliseconds(compute, x, kernel, runs=runs)]
        for number in (0, 1):
            function = functools.partial(towards, number)
            found[name].append(milliseconds(function, x, kernel, gradient, runs=runs))
    if case.groups == 1:
        written = functools.partial(
            folded.kernel_gradient,
            kernel_shape=case.kernel,
            strides=case.strides,
            padding=case.padding,
        )
        found["written"] = [math.nan] * 2 + [milliseconds(written, x, gradient, runs=runs)]
    return found


def cases_of(model, clips, dtype):
    """Counts of a model's convolutions, as the lowerings get them: {Case: how often}.

    Args:
      model: a classifier of `skd_jax.models`.
      clips: shape (B, T, H, W, 3).
      dtype: of the clips.
    """
    table = choices.TABLE
    # All convolutions as XLA's own are easily read from the jaxpr.
    choices.TABLE = ((jax.default_backend(), choices.every, "plain"),)
    try:
        shapes = jax.ShapeDtypeStruct(clips, dtype)
        variables = jax.eval_shape(model.init, jax.random.key(0), shapes)
        jaxpr = jax.make_jaxpr(model.apply)(variables, shapes)
    finally:
        choices.TABLE = table
    return collections.Counter(_convolutions(jaxpr.jaxpr))


def _convolutions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            x, kernel = (variable.aval.shape for variable in equation.invars)
            # conv3d's own: the same number of zeros on both sides, and the clips' layout.
            padding = tuple(before for before, _ in equation.params["padding"])
            strides = equation.params["window_strides"]
            yield Case(x, kernel, strides, padding, equation.params["feature_group_count"])
        for part in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner := getattr(part, "jaxpr", part), "eqns"):
                yield from _convolutions(inner)


def quickest(cases, dtype, runs):
    """The quickest lowering of each convolution, over all clips that it sees.

    Args:
      cases: {Case: how often}.
      dtype: of clips and kernels.
      runs: of which the quickest counts.

    Returns:
      {Convolution: (lowering, {lowering: milliseconds in all})}.
    """
    totals = collections.defaultdict(collections.Counter)
    for case, count in cases.items():
        for name, time_taken in measure_lowerings(case, dtype, runs).items():
            taken = math.inf if math.isnan(time_taken) else time_taken
            totals[case.convolution(dtype)][name] += count * taken
    return {key: (min(times, key=times.get), dict(times)) for key, times in totals.items()}


def section(title, note, by_lowering, by_form, sizes, chosen):
    """The measurements as markdown.

    Args:
      title: names machine and dtype.
      note: a sentence on versions.
      by_lowering: {case: {lowering: milliseconds}}.
      by_form: {case: {form: three times in milliseconds}}.
      sizes: {case: FLOPs of a forward pass}.
      chosen: {case: lowering}.
    """
    names = [name for name in conv3d.LOWERINGS if any(name in row for row in by_lowering.values())]
    lines = [f"## {title}", "", note, ""]
    lines += ["Forward and gradients in one program, ms; the choice in bold, * the quickest.", ""]
    lines += [_line("convolution", *names), _rule(len(names))]
    for case, times in by_lowering.items():
        least = min(times.values(), key=lambda value: (math.isnan(value), value))
        cells = []
        for name in names:
            cell = f"{times[name]:.2f}" + "*" * (times[name] == least) if name in times else ""
            cells.append(f"**{cell}**" if name == chosen[case] else cell)
        lines.append(_line(case, *cells))
    if by_form:
        lines += ["", "Each pass by itself, ms (GFLOP/s).", ""]
        lines += [_line("convolution", "form", *HEADS), "|---|---|" + "---:|" * len(HEADS)]
    for case, forms in by_form.items():
        for form, times in forms.items():
            cells = (
                "" if math.isnan(t) else f"{t:.2f} ({sizes[case] / t / 1e6:.0f})" for t in times
            )
            lines.append(_line(case, form, *cells))
    return "\n".join(lines) + "\n"


def _line(*cells):
    return "| " + " | ".join(cells) + " |"


def _rule(columns):
    return "|---|" + "---:|" * columns


INTRODUCTION = """# What convolutions take

Made by `python -m benchmarks.convolutions --markdown benchmarks/convolutions.md`, which says what is measured;
skd_jax/models/choices.py holds what was chosen from it.
"""


def replaced(text, new):
    """A document with this section in place of the one of the same title, or at its end."""
    head, *parts = (text or INTRODUCTION).split("\n## ")
    old = {part.splitlines()[0]: part.strip("\n") for part in parts}
    new = new.removeprefix("## ").strip("\n")
    old[new.splitlines()[0]] = new
    return "\n\n## ".join([head.strip("\n"), *old.values()]) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=CASES)
    parser.add_argument("--model", choices=models.names(), help="its convolutions in their place")
    parser.add_argument("--clips", default="4x8x112x112", help="of --model: BxTxHxW")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-forms", action="store_true", help="the lowerings alone")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the tables here too")
    options = parser.parse_args(arguments)
    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    title = f"{machine.device()}, {options.dtype}"
    cases = {name: CASES[name] for name in options.cases}
    if options.model:
        clips = (*map(int, options.clips.split("x")), 3)
        model = models.create(options.model, 101, dtype=options.dtype)
        cases = {_named(case): case for case in cases_of(model, clips, options.dtype)}
        title += f", {options.model} on {options.clips}"
    by_lowering, by_form = {}, {}
    for name, case in cases.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        by_lowering[name] = measure_lowerings(case, options.dtype, options.runs)
        if not options.no_forms:
            by_form[name] = measure_forms(case, options.dtype, options.runs)
    versions = machine.versions("jax", "jaxlib").items()
    chosen = {
        name: choices.choose_lowering(jax.default_backend(), *case.convolution(options.dtype))
        for name, case in cases.items()
    }
    text = section(
        title,
        ", ".join(f"{package} {version}" for package, version in versions)
        + f"; oneDNN {'is' if onednn.available() else 'is not'} used.",
        by_lowering,
        by_form,
        {name: flops(case) for name, case in cases.items()},
        chosen,
    )
    print(text)
    if options.markdown:
        before = options.markdown.read_text() if options.markdown.exists() else ""
        part = options.markdown.with_name(options.markdown.name + ".part")
        part.write_text(replaced(before, text))
        os.replace(part, options.markdown)
    return 0


def _named(case):
    sizes = ("x".join(map(str, shape)) for shape in (case.clips[1:], case.kernel, case.strides))
    clips, kernel, strides = sizes
    return f"{kernel} on {clips}, stride {strides}" + f", {case.groups} groups" * (case.groups > 1)


if __name__ == "__main__":
    memory.restart_with_large_pages()
    sys.exit(main())
