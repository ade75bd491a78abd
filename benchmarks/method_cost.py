"""What a training step of every method costs, against supervision with as many clips.

    python -m benchmarks.method_cost
    python -m benchmarks.method_cost --model r3d_18 --width 1 --clip 16x112x112 --clips 32 --methods skd_srl frskd

Methods are those of skd_jax.methods and the variants of benchmarks.accuracy that set a method's options.
A step sees --clips clips for every method: one clip of each video for supervision, V clips of 1 / V as many videos
for a method of V views. The step is the whole one, augmentation and optimiser included; teachers are the
same network at twice the width. Each method's step and supervision's take turns, and the ratio is the median
over the rounds. Methods of several stages: the mean of the times by the stages' share of the training, else the largest.
"Memory" is what XLA plans for the step (arguments and temporaries), "parameters" what training carries beyond
the classifier, a frozen teacher not counted.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import accuracy
from skd_jax import augment, memory, methods, models, optim, step

CLASSES, VIDEOS = 101, 1024
OPTIONS = ("frskd_sla", "frskd_mixup", "frskd_cutmix", "skd_srl_past")  # beside every method


class Step:
    """A compiled training step on random clips, and its state."""

    def __init__(self, method, clip, clips, seed=0):
        frames, crop = clip
        rng, views = np.random.default_rng(seed), method.num_views
        if clips % views:
            raise SystemExit(f"--clips {clips} is no multiple of the {views} clips of a video")
        videos = clips // views
        batch = {
            "clips": rng.integers(0, 256, (videos, views, frames, crop, crop, 3), dtype=np.uint8),
            "size": np.full((videos, views, 2), crop, np.int32),
            "flip": rng.random((videos, views)) < 0.5,
            "key": rng.integers(0, 2**32, (videos, 2), dtype=np.uint32),
            "label": (np.arange(videos) % CLASSES).astype(np.int32),
            "index": np.arange(videos, dtype=np.int32),
        }
        tx = optim.optimiser(optim.OptimSettings(), 10**6, method.constant_lr)
        settings = step.StepSettings(total_steps=10**6)
        self.state = step.create_state(
            method, tx, jax.random.key(seed), (frames, crop, crop, 3), settings
        )
        run = functools.partial(
            step.train_step,
            method=method,
            tx=tx,
            augmentation=augment.AugmentSettings(crop=crop),
            settings=settings,
        )
        self.batch = jax.device_put(batch)
        self._run = jax.jit(run, donate_argnums=0).lower(self.state, self.batch).compile()
        plan = self._run.memory_analysis()
        self.bytes = plan.argument_size_in_bytes + plan.temp_size_in_bytes
        networks = {name: tree for name, tree in self.state.params.items() if name != "model"}
        self.extra = sum(x.size for x in jax.tree.leaves(networks))

    def seconds(self, count):
        """Of one of `count` steps."""
        start = time.perf_counter()
        for _ in range(count):
            self.state, _ = self._run(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / count


def compare(ours, reference, rounds, seconds):
    """(seconds, ratio to `reference`) of a step: medians over the rounds, the two in turn."""
    count = max(1, round(seconds / reference.seconds(1)))
    own, ratios = [], []
    for each in (ours, reference):
        each.seconds(1)
    for _ in range(rounds):
        base = reference.seconds(count)
        own.append(ours.seconds(count))
        ratios.append(own[-1] / base)
    return statistics.median(own), statistics.median(ratios)


def cost(name, network, teacher, clip, clips, reference, rounds, seconds):
    """The row of a method, or of a variant of one."""
    chosen = accuracy.variant(name)
    given = {key.removeprefix("method."): value for key, value in chosen.overrides.items()}
    if methods.takes_teacher(chosen.method):
        given["teacher"] = network if chosen.method == "tf_kd_self" else teacher
    method = methods.create(chosen.method, network, num_videos=VIDEOS, **given)
    parts = [(stage.share, stage.method) for stage in method.earlier_stages]
    parts.append((1 - sum(share for share, _ in parts), method))
    row = {"method": name, "views": method.num_views, "seconds": 0.0, "ratio": 0.0}
    row |= {"bytes": 0, "extra": 0}
    for share, part in parts:
        compiled = Step(part, clip, clips)
        took, ratio = compare(compiled, reference, rounds, seconds)
        row["seconds"] += share * took
        row["ratio"] += share * ratio
        row["bytes"] = max(row["bytes"], compiled.bytes)
        row["extra"] = max(row["extra"], compiled.extra)
    return row | {"memory": row["bytes"] / reference.bytes}


def markdown(rows):
    """The table."""
    lines = [
        "| method | clips of a video | step, of supervision | memory, of supervision | parameters beside the classifier |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        extra = f"{row['extra']:,}" if row["extra"] else "none"
        lines.append(
            f"| `{row['method']}` | {row['views']} | {row['ratio']:.2f} | {row['memory']:.2f} | {extra} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="r3d_18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--clip", default="8x64x64", help="TxSxS")
    parser.add_argument("--clips", type=int, default=16, help="of a step")
    every = [*methods.names(), *OPTIONS]
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per side and round")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    if jax.default_backend() == "cpu":
        memory.keep_freed_memory()
    frames, height, width = map(int, options.clip.split("x"))
    if height != width:
        raise SystemExit(f"--clip takes square clips, TxSxS; got {options.clip}")
    clip = frames, height
    network = models.create(options.model, CLASSES, width=options.width)
    teacher = models.create(options.model, CLASSES, width=2 * options.width)
    reference = Step(methods.create("supervised", network), clip, options.clips)
    rows = []
    for name in options.methods:
        fixed = network, teacher, clip, options.clips, reference, options.rounds, options.seconds
        rows.append(cost(name, *fixed))
        print(
            f"{name:20}{rows[-1]['seconds'] * 1e3:9.1f} ms  {rows[-1]['ratio']:5.2f} x", flush=True
        )
        if options.json:
            part = options.json.with_name(options.json.name + ".part")
            part.write_text(json.dumps(rows, indent=1) + "\n")
            os.replace(part, options.json)
    print(
        f"\n{options.model}, width {options.width:g}, {options.clips} clips of {options.clip}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}\n"
    )
    print(markdown(rows))


if __name__ == "__main__":
    memory.restart_with_large_pages()
    sys.exit(main())
