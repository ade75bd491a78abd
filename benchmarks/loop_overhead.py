"""What the training loop adds to the bare jitted step.

    python -m benchmarks.loop_overhead

The loop is `train.train` as it stands (prefetching, metrics fetched two steps late, metrics.jsonl and
TensorBoard, progress), fed from memory, without validation and with one checkpoint, at the end. The
bare step runs on the same batches, already on the devices, and is waited for at the end only. Both
are timed in turn, each compiled anew with a state of its own for every round, since where the state
comes to lie in memory changes the step's time too; the loop's clock is read when it asks for a batch,
from the first to the last of the timed steps, so that compilation and the checkpoint do not count.
overhead: loop's time over the bare step's, less 1, the median of the ratios of each round.

Before that it prints what makes the loop cheap, read from the compiled step: the dtype in which clips
cross to the device, and how many bytes of the state's memory the step's result takes over.

Neither TensorFlow nor ml_collections is needed.
"""

import argparse
import contextlib
import functools
import io
import itertools
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks.pod_cost import batch_shapes
from skd_jax import augment, memory, methods, models, optim, parallel, step, train


def make_batches(method: methods.Method, clip: tuple[int, int, int], videos: int, count: int):
    """`count` different host batches, as the input pipeline gives them."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        batch = {
            name: rng.integers(0, 2 if name in ("label", "flip") else 256, shape.shape).astype(
                shape.dtype
            )
            for name, shape in batch_shapes(method, clip, videos).items()
        }
        batch["size"][:] = clip[1]
        batches.append(batch)
    return batches


def bare_contender(build, placed):
    """A function of the number of steps: seconds for them.

    `build` gives a state and the jitted step, both new.
    """

    def run(steps):
        state, train_step = build()
        turns = itertools.cycle(placed)
        for _ in range(2):  # compiles
            state, _ = train_step(state, next(turns))
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(steps):
            state, _ = train_step(state, next(turns))
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return run


def loop_contender(method, tx, schedule, augmentation, settings, batches):
    """The same of the whole loop, which compiles anew each time."""
    warmup = 4  # the compilation, and what is prefetched meanwhile

    def run(steps):
        asked = []

        def endless(first):
            del first
            for batch in itertools.cycle(batches):
                asked.append(time.perf_counter())
                yield batch

        total = warmup + steps + 3  # two prefetched batches and the one that is being used
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            train.train(
                method,
                tx,
                schedule,
                augmentation,
                settings(total),
                train.Data(endless, None, lambda rows: [str(row) for row in rows]),
                pathlib.Path(folder),
                log=lambda _: None,
            )
        return asked[warmup + steps] - asked[warmup]

    return run


def facts(state, train_step, placed) -> str:
    """What the compiled step says of its inputs."""
    compiled = train_step.lower(state, placed).compile()
    memory_use = compiled.memory_analysis()
    size = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    return (
        f"clips on the device: {placed['clips'].dtype}; state {size / 1e6:.1f} MB, taken over by "
        f"the result {memory_use.alias_size_in_bytes / 1e6:.1f} MB"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="r3d_10")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", default="pmap")
    options = parser.parse_args(arguments)

    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    model = models.create(options.model, num_classes=101, width=options.width)
    method = methods.create(options.method, model)
    clip = (options.frames, options.size, options.size)
    settings = optim.OptimSettings()
    tx = optim.optimiser(settings, 10**6, method.constant_lr)
    augmentation = augment.AugmentSettings(crop=options.size)
    batches = make_batches(method, clip, options.batch, 4)

    def loop_settings(total):
        return train.LoopSettings(
            total_steps=total,
            clip_shape=(*clip, 3),
            eval_every=total,
            checkpoint_every=total,
            replicas=options.replicas,
        )

    replicas = parallel.create(options.replicas)
    step_settings = step.StepSettings(total_steps=10**6)

    def build():
        state = step.create_state(method, tx, jax.random.key(0), (*clip, 3), step_settings)
        train_step = functools.partial(
            step.train_step,
            method=method,
            tx=tx,
            augmentation=augmentation,
            settings=step_settings,
        )
        return replicas.put(state), replicas.train(train_step)

    placed = [replicas.shard(batch) for batch in batches]
    print(
        f"{options.model}, width {options.width:g}, {options.method}, batch {options.batch}, "
        f"{options.frames}x{options.size}x{options.size}, {options.replicas} on "
        f"{jax.device_count()} {jax.default_backend()} device(s)\n{facts(*build(), placed[0])}"
    )
    bare = bare_contender(build, placed)
    schedule = optim.schedule(settings, 10**6)
    loop = loop_contender(method, tx, schedule, augmentation, loop_settings, batches)
    seconds = {"bare step": [], "loop": []}
    for _ in range(options.rounds):
        seconds["bare step"].append(bare(options.steps))
        seconds["loop"].append(loop(options.steps))
    for name, column in seconds.items():
        rates = sorted(options.steps / value for value in column)
        print(
            f"{name:10}{statistics.median(rates):9.3f} steps/s ({rates[0]:.3f} to {rates[-1]:.3f})"
        )
    ratios = [b / a - 1 for a, b in zip(*seconds.values(), strict=True)]
    print(
        f"overhead  {statistics.median(ratios):9.2%}        ({min(ratios):.2%} to {max(ratios):.2%})"
    )


if __name__ == "__main__":
    memory.restart_with_large_pages()  # as main.py does
    main()
