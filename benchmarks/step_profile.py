"""Where a training step's time goes, beside PyTorch's: convolutions by pass, and all the rest.

    python -m benchmarks.step_profile --models r3d_18 mc3_18

For every convolution of a network, as often as it occurs: forward, gradient towards the clips and towards
the kernel, each by itself with what `skd_jax/models/choices.py` chooses, and the same in PyTorch, in the
memory format whose whole step is the quicker one. "rest" is what the step (supervised, one view, of
benchmarks/train_step.py) takes beyond their sum: BatchNorm, ReLU, additions, augmentation, optimiser, and
what a step gains (passes that run at once) or loses (caches) by being one. Milliseconds; the quickest of
several runs counts, of steps too. Each side has a process of its own, one after the other.
"""

import argparse
import functools
import multiprocessing
import sys
import time

from benchmarks import machine, train_step
from skd_jax import memory

PASSES = ("forward", "towards clips", "towards kernel")


def ours(model: str, frames: int, crop: int, batch: int, runs: int) -> dict[str, float]:
    """{pass: milliseconds in all convolutions, "step": of the whole step} of this project."""
    import jax

    from benchmarks import convolutions
    from skd_jax import models
    from skd_jax.models.conv3d import conv3d

    memory.keep_freed_memory()
    built = models.create(model, train_step.CLASSES)
    cases = convolutions.cases_of(built, (batch, frames, crop, crop, 3), "float32")
    found = dict.fromkeys(PASSES, 0.0)
    for case, count in cases.items():
        x, kernel, gradient = convolutions.draw(case, "float32")

        def forward(x, kernel, case=case):
            return conv3d(x, kernel, *case[2:])

        def towards(number, x, kernel, gradient, forward=forward):
            return jax.vjp(forward, x, kernel)[1](gradient)[number]

        time_of = functools.partial(convolutions.milliseconds, runs=runs)
        found["forward"] += count * time_of(forward, x, kernel)
        if _needs_clip_gradient(case):
            taken = time_of(functools.partial(towards, 0), x, kernel, gradient)
            found["towards clips"] += count * taken
        taken = time_of(functools.partial(towards, 1), x, kernel, gradient)
        found["towards kernel"] += count * taken
    side = train_step.JaxSide(model, "supervised", frames, crop, batch, "float32")
    return found | {"step": _quickest_step(side, runs)}


def theirs(model: str, frames: int, crop: int, batch: int, runs: int) -> dict[str, float]:
    """The same in PyTorch, and "format"."""
    import torch

    from benchmarks import convolutions
    from skd_jax import models

    # The convolutions' shapes are read from this project's model, and nothing computed with JAX.
    built = models.create(model, train_step.CLASSES)
    cases = convolutions.cases_of(built, (batch, frames, crop, crop, 3), "float32")
    steps = {}
    for channels_last in (False, True):
        torch.manual_seed(0)
        side = train_step.TorchSide(
            model, "supervised", frames, crop, batch, "float32", channels_last
        )
        steps[channels_last] = _quickest_step(side, runs)
        del side
    channels_last = min(steps, key=steps.get)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    found = dict.fromkeys(PASSES, 0.0)
    for case, count in cases.items():
        for name, taken in _passes_in_torch(case, layout, runs).items():
            found[name] += count * taken
    how = "channels_last_3d" if channels_last else "default format"
    return found | {"step": steps[channels_last], "format": how}


def _passes_in_torch(case, layout, runs):
    import torch

    (n, *size, c), (*window, inputs, features) = case.clips, case.kernel
    x = torch.randn(n, c, *size).contiguous(memory_format=layout)
    kernel = torch.randn(features, inputs, *window).contiguous(memory_format=layout)
    strides, padding, groups = case.strides, case.padding, case.groups

    def forward():
        return torch.nn.functional.conv3d(x, kernel, None, strides, padding, 1, groups)

    gradient = torch.randn_like(forward())

    def backward(clips):
        return torch.ops.aten.convolution_backward(
            gradient,
            x,
            kernel,
            None,
            strides,
            padding,
            (1, 1, 1),
            False,
            (0, 0, 0),
            groups,
            (clips, not clips, False),
        )

    found = {"forward": _quickest(forward, runs)}
    if _needs_clip_gradient(case):
        found["towards clips"] = _quickest(functools.partial(backward, True), runs)
    return found | {"towards kernel": _quickest(functools.partial(backward, False), runs)}


def _needs_clip_gradient(case):
    return case.clips[-1] != 3  # a network's clips themselves need none


def _quickest(function, runs):
    """Milliseconds; what takes little is run several times in a row, as in benchmarks/convolutions.py."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        count = 1
        while time.perf_counter() - start < 0.02 and count < 100:
            function()
            count += 1
        times.append((time.perf_counter() - start) / count)
    return 1e3 * min(times[1:])


def _quickest_step(side, runs):
    side.steps(2)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        side.steps(1)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown of {"skd_jax": what `ours` gives, "PyTorch": what `theirs` gives}."""
    names = list(found)
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    sums = {name: sum(times[key] for key in PASSES) for name, times in found.items()}
    for key in (*PASSES, "rest", "step"):
        cells = (
            times["step"] - sums[name] if key == "rest" else times[key]
            for name, times in found.items()
        )
        lines.append(f"| {key} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=train_step.MODELS)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args(arguments)
    versions = machine.versions("jax", "jaxlib", *(() if options.no_torch else ("torch",)))
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{machine.processor()}, {said}", flush=True)
    sides = {"skd_jax": ours} | ({} if options.no_torch else {"PyTorch": theirs})
    context = multiprocessing.get_context("spawn")
    for model in options.models:
        found = {}
        for name, side in sides.items():
            with context.Pool(1) as pool:
                case = (model, options.frames, options.crop, options.batch, options.runs)
                times = pool.apply(side, case)
            found[f"{name}, {times['format']}" if "format" in times else name] = times
        size = f"{options.batch} clips of {options.frames}x{options.crop}x{options.crop}"
        print(f"\n{model}, {size}, ms\n\n{table(found)}", flush=True)
    return 0


if __name__ == "__main__":
    memory.restart_with_large_pages()
    sys.exit(main())
