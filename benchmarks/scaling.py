"""Collectives of the training step on 1 to 8 devices, and what they cost.

    python -m benchmarks.scaling                                # fake devices and two processes
    python -m benchmarks.scaling --accelerators                 # the devices of this machine
    python -m benchmarks.scaling --paper 8,64,256 --link 50 --peak 400   # the formula alone

The first table is read from the compiled program and exact: for each kind of replicas, method and
BatchNorm, how many collectives a step has and how many bytes each device puts into them. "update" is
the reduction of gradients, metrics and running statistics; "forward" and "backward" are those of a
synchronised BatchNorm: the mean and the mean square of every channel in one, the gradients of both in
one; "diagnostics" are the vectors or moments behind SKD-SRL's embedding spread and rank. XLA joins
collectives that do not depend on each other, such as those of a block's first and shortcut BatchNorm.

The time is that of the step, and that of the same step compiled without any collective (every
replica by itself, `axis_name=None`), in turn; their difference over the first is the share of
communication. It holds the waiting for the slowest replica, which belongs to communication. Fake
devices are threads that share this machine's cores and memory: the share shows what synchronisation
and adding up cost, nothing of a network, and seconds do not shrink with devices. Two processes send
over this machine's loopback (Gloo, TCP), on the same cores. For a network, take the bytes and the
formula of `benchmarks/pod_cost.py`, which is printed last.

Neither TensorFlow nor ml_collections is needed.
"""

import argparse
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PARTS = ("update", "forward", "backward", "diagnostics")
REPLICAS = ("pmap", "shard_map")
METHODS = ("supervised", "skd_srl")


def part_of(op_name: str) -> str:
    """Which of `PARTS` a collective of the training step belongs to, by the name of its operation."""
    if "mean_over_replicas" in op_name:
        return "update"
    if "spread_and_rank" in op_name:
        return "diagnostics"
    return "backward" if "transpose(" in op_name else "forward"


def measure(options, replicas_name: str, method_name: str, sync: bool) -> dict:
    """Compiles one step on all devices, counts its collectives and times it.

    Returns:
      "collectives" {part: {"kinds": {kind: count}, "bytes": ...}} and, if steps are timed, "with" and
      "without": seconds of the median step.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from benchmarks import pod_cost
    from benchmarks.collectives import collectives
    from skd_jax import augment, optim, parallel, step

    method = create_method(options, method_name, sync)
    settings = step.StepSettings(total_steps=100)
    tx = optim.optimiser(optim.OptimSettings(), settings.total_steps, method.constant_lr)
    replicas = parallel.create(replicas_name)
    clip = tuple(options.clip)
    start = jax.device_get(step.create_state(method, tx, jax.random.key(0), (*clip, 3), settings))
    videos = options.batch * jax.local_device_count()
    rng = np.random.default_rng(jax.process_index())
    batch = {
        name: rng.integers(0, 2, shape.shape).astype(shape.dtype)
        for name, shape in pod_cost.batch_shapes(method, clip, videos).items()
    }
    batch["size"][:] = clip[1]
    batch = replicas.shard(batch)
    train_step = functools.partial(
        step.train_step,
        method=method,
        tx=tx,
        augmentation=augment.AugmentSettings(crop=clip[1]),
        settings=settings,
    )

    def alone(state, batch, axis_name):
        del axis_name
        return train_step(state, batch, axis_name=None)

    runs = {"with": replicas.train(train_step), "without": replicas.train(alone)}
    states = {name: replicas.put(start) for name in runs}
    text = runs["with"].lower(states["with"], batch).compile().as_text()
    found = {part: {"kinds": {}, "bytes": 0} for part in PARTS}
    for collective in collectives(text):
        part = found[part_of(collective.op_name)]
        part["kinds"][collective.kind] = part["kinds"].get(collective.kind, 0) + 1
        part["bytes"] += collective.nbytes
    result = {"collectives": found}
    if options.steps:
        seconds = {name: [] for name in runs}
        for number in range(options.steps + 1):  # the first one compiles
            for name, run in runs.items():
                if jax.process_count() > 1:
                    # Or the one would wait for what the other does alone.
                    multihost_utils.sync_global_devices(f"{name} {number}")
                begin = time.perf_counter()
                states[name], metrics = run(states[name], batch)
                jax.block_until_ready((states[name], metrics))
                if number:
                    seconds[name].append(time.perf_counter() - begin)
        result |= {name: statistics.median(column) for name, column in seconds.items()}
    return result


def create_method(options, name: str, sync: bool):
    """The method over the model that the options name."""
    from skd_jax import methods, models

    model = models.create(
        options.model, num_classes=options.classes, width=options.width, dtype=options.dtype
    )
    return methods.create(name, model, sync_batch_norm=sync)


def work(options) -> None:
    """In a process of its own: joins the others, measures and prints a line of JSON for each row."""
    import jax

    if options.process_count > 1:
        jax.distributed.initialize(options.coordinator, options.process_count, options.process)
    elif jax.default_backend() == "cpu":
        from skd_jax import memory

        memory.keep_freed_memory()
    for replicas, method, sync in rows(options):
        result = measure(options, replicas, method, sync)
        result |= {"devices": jax.device_count(), "processes": jax.process_count()}
        result |= {"replicas": replicas, "method": method, "sync": sync}
        if jax.process_index() == 0:
            print(json.dumps(result), flush=True)


def rows(options):
    """What is measured in each setup: (replicas, method, synchronised BatchNorm)."""
    return itertools.product(options.replicas, options.methods, (True, False))


def run_setup(devices: int | None, processes: int, cache: str):
    """Yields the measurements of one setup; `devices` fake ones in each process, or what is there."""
    environment = dict(os.environ)
    if devices is None:
        # One compilation serves the program's text and its runs (on CPU oneDNN's calls keep it from being stored).
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    command = [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:], "--worker"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command += [f"--coordinator=localhost:{port}", f"--process_count={processes}"]
    running = [
        subprocess.Popen(
            [*command, f"--process={i}"], env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(processes)
    ]
    try:
        for line in running[0].stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if any(process.wait() for process in running):
            raise SystemExit("a worker failed; its own message stands above")
    finally:
        for process in running:
            process.kill()
            process.wait()


def size(nbytes: int) -> str:
    """Bytes in the unit that reads best."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{nbytes} B"


def heading(timed: bool = True) -> str:
    """The table's first line."""
    columns = "".join(f"{part:>20}" for part in PARTS)
    times = f"{'step':>10}{'alone':>10}{'share':>7}" if timed else ""
    return f"{'processes x devices':20}{'replicas':10}{'method':11}{'BatchNorm':10}{columns}{times}"


def line(row: dict) -> str:
    """One measurement as a line below `heading`."""
    cells = []
    for part in PARTS:
        found = row["collectives"][part]
        counts = "".join(
            f"{count} {''.join(word[0] for word in kind.split('-')).upper()} "
            for kind, count in sorted(found["kinds"].items())
        )
        cell = counts + size(found["bytes"]) if counts else "-"
        cells.append(f"{cell:>20}")
    times = ""
    if "with" in row:
        share = max(0.0, 1 - row["without"] / row["with"]) if row["devices"] > 1 else 0.0
        times = f"{row['with']:>8.3f} s{row['without']:>8.3f} s{share:>7.1%}"
    where = f"{row['processes']} x {row['devices'] // row['processes']}"
    norm = "synced" if row["sync"] else "apart"
    return f"{where:20}{row['replicas']:10}{row['method']:11}{norm:10}{''.join(cells)}{times}"


def print_paper(options) -> None:
    """The formula with the command line's figures."""
    from benchmarks import pod_cost

    machine = pod_cost.Machine(
        options.link * 1e9, options.peak * 1e12, options.utilisation, options.latency * 1e-6
    )
    frames, height, width = options.clip
    for name, sync in itertools.product(options.methods, (True, False)):
        method = create_method(options, name, sync)
        step = pod_cost.step_of(method, tuple(options.clip), options.batch)
        clips = options.batch * method.num_views
        print(
            f"\n{name}, BatchNorm {'synced' if sync else 'apart'}: {options.model}, {options.batch} "
            f"videos a device, {clips} clips of {frames}x{height}x{width}\n"
            f"  bytes = 4 ({step.parameters:,} + {step.statistics:,} + {step.metrics}) "
            f"+ 8 x {step.synchronised:,} = {step.fused_bytes + step.batch_norm_bytes:,}\n"
            f"  collectives = 1 + 2 x {step.batch_norms} = {step.collectives}\n"
            f"  FLOP = {step.flops:.4g}, of {options.peak:g} TFLOP/s x {options.utilisation:g}"
        )
        print("\n".join(pod_cost.table(step, machine, options.paper, clips)))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="r3d_18")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clip", type=numbers, default=[8, 56, 56], help="T,H,W of a view")
    parser.add_argument("--batch", type=int, default=2, help="videos of one device")
    parser.add_argument("--steps", type=int, default=5, help="timed ones; 0 counts only")
    parser.add_argument("--devices", type=numbers, default=[1, 2, 4, 8], help="fake ones")
    parser.add_argument("--processes", type=numbers, default=[2], help="of one device each")
    parser.add_argument("--accelerators", action="store_true", help="this machine's devices")
    parser.add_argument("--replicas", type=lambda x: x.split(","), default=list(REPLICAS))
    parser.add_argument("--methods", type=lambda x: x.split(","), default=list(METHODS))
    paper = parser.add_argument_group("the formula")
    paper.add_argument("--paper", type=numbers, help="numbers of devices; measures nothing")
    paper.add_argument("--link", type=float, default=50.0, help="GB/s sent by a device")
    paper.add_argument("--peak", type=float, default=400.0, help="TFLOP/s of a device")
    paper.add_argument("--utilisation", type=float, default=0.4, help="share of it reached")
    paper.add_argument("--latency", type=float, default=20.0, help="us of a small all-reduce")
    worker = parser.add_argument_group("set by this program")
    worker.add_argument("--worker", action="store_true")
    worker.add_argument("--coordinator")
    worker.add_argument("--process_count", type=int, default=1)
    worker.add_argument("--process", type=int, default=0)
    options = parser.parse_args(arguments)
    if len(options.clip) != 3 or options.clip[1] != options.clip[2]:
        parser.error("--clip takes T,H,W with H = W")
    return options


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    if options.paper:
        print_paper(options)
        return
    print(
        f"{options.model}, width {options.width:g}, {options.classes} classes, {options.dtype}; "
        f"{options.batch} videos a device, views of {'x'.join(map(str, options.clip))}\n"
        "AR: all-reduce, AG: all-gather; bytes put out on each device\n"
        f"{heading(options.steps > 0)}"
    )
    setups = [(n, 1) for n in options.devices] + [(1, n) for n in options.processes]
    with tempfile.TemporaryDirectory() as cache:
        for devices, processes in [(None, 1)] if options.accelerators else setups:
            for row in run_setup(devices, processes, cache):
                print(line(row), flush=True)
    options.paper = [1, 8, 64, 256]
    print_paper(options)


if __name__ == "__main__":
    main()
