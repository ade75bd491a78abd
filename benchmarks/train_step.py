"""Seconds per training step: this project's beside the same network, loss and optimiser in PyTorch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --models r3d_18 r2plus1d_18 --shapes 16x112x112x64 --dtype bfloat16 \\
        --lowerings plain folded mixed --apart

The step is the whole one: uint8 clips already on the device are resized, flipped and normalised; forward and
backward pass; SGD with Nesterov momentum and weight decay. "supervised" sees one view of a video,
"skd_srl" two, in separate passes, with projector, predictor and the three losses. PyTorch does the
same from the same weights, and the losses of the first three steps are compared before anything is
timed: the first sees the forward pass, the others the gradients and the optimiser. It runs once with
its default memory format and once with channels_last_3d, in bfloat16 (autocast) with the latter alone;
the faster one counts. On a GPU its loss is compiled (torch.compile), elsewhere with --compile.

Each side lives in a process of its own with the same cores and, on Linux, large pages (skd_jax/memory.py);
they take turns, round by round, while the others sleep, and a turn's first step is not counted. With
--apart each has all its rounds before the next one starts, for a device whose memory does not hold all
of them. The ratio is the median over the rounds of ours / PyTorch's: below 1 ours is quicker.

bfloat16 is for accelerators: on CPU, PyTorch 2.13's gradients towards bfloat16 kernels were wrong where oneDNN
computed them (NaN in r3d_18's stem at 2x32x32; right without oneDNN), and the comparison then stops.

--lowerings times others than the table's choice (skd_jax/models/choices.py): "plain" and "folded" for every
convolution that they can compute, "mixed" for each convolution of the network the one that is quickest by
itself, forward and gradients, measured with benchmarks/convolutions.py on the device before the step is compiled.

FLOP/s are 6 times the multiply-accumulates of a forward pass (forward, and twice as much backward)
times the clips, a convention that both sides share; their share of the peak that a chain of square matrix
products of the dtype reached in the same process is the utilisation (on a GPU float32 means TF32 on both sides,
the default of their convolutions). Memory is the most that the device reports to have held (first steps,
initialisation and XLA's trials of algorithms included) or, where it reports none, as on CPU, what XLA
plans for the step (arguments and temporaries): "peak" or "planned"; also with the activations
recomputed (remat). "Kept" is what the forward pass of one view keeps for the backward pass, counted from the
shapes of its residuals before XLA sees them.

A side that fails, for want of memory say, is told as failed, with the rest of its case measured where each side
is --apart, and the next case follows; the exit status is then 1.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import statistics
import sys
import time

import numpy as np

from benchmarks import machine
from skd_jax import memory

MODELS = ("r3d_18", "r2plus1d_18", "mc3_18", "mobilenetv2_x1")
SHAPES = ("8x112x112x4", "8x64x64x16")
METHODS = {"supervised": 1, "skd_srl": 2}
LOWERINGS = ("plain", "folded", "mixed")
CLASSES = 101
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
# Of SKD-SRL, for both sides.
TEMPERATURE, LAMBDA_KD, LAMBDA_SIM, PROJECTOR_OUT, PREDICTOR_HIDDEN = 10.0, 0.1, 0.05, 512, 128
# Size of the square matrices, and how many products follow on each other: enough to fill the device and
# to hide what starting a program takes.
CHAINS = {"cpu": (2048, 2), "gpu": (8192, 20), "tpu": (8192, 20)}
COMPARED_STEPS = 3
# Differences of the losses, of the first step and of those after it, as shares of the first loss. Rounding came
# to 2e-7, 4e-5 and 6e-4 in float32 and to 3e-4, 8e-3 and 3e-3 in bfloat16 (r3d_18, 4 clips of 4x32x32, on CPU);
# PyTorch's step without momentum was 0.14 and 0.23 away. Weight decay is too small to be seen.
TOLERANCES = {"float32": (1e-3, 2e-2), "narrower": (2e-2, 5e-2)}


def make_batch(method, frames, crop, batch):
    """A batch as the pipeline gives it: windows of 8/7 the crop, to be resized."""
    rng, canvas, views = np.random.default_rng(0), crop * 8 // 7, METHODS[method]
    shape = (batch, views, frames, canvas, canvas, 3)
    return {
        "clips": rng.integers(0, 256, shape, dtype=np.uint8),
        "size": np.full((batch, views, 2), canvas, np.int32),
        "flip": rng.integers(0, 2, (batch, views)).astype(bool),
        "key": np.zeros((batch, 2), np.uint32),
        "label": (np.arange(batch) % CLASSES).astype(np.int32),
        "index": np.arange(batch, dtype=np.int32),
    }


# --- JAX ---


class JaxSide:
    """This project's step, compiled.

    Attributes:
      facts: {"device": its kind, "exact": whether it multiplies float32 in float32, "macs":
        multiply-accumulates of a clip's forward pass, "kept": see `kept_bytes`}, and "rows": what `force`
        says.
    """

    def __init__(self, model, method, frames, crop, batch, dtype, lowering=None, remat=False):
        import jax
        import optax

        from skd_jax import augment, methods, models, step
        from skd_jax.models import cost

        self._jax = jax
        if jax.default_backend() == "cpu":
            memory.keep_freed_memory()  # as main.py does
        built = models.create(model, CLASSES, dtype=dtype, remat=remat)
        self.facts = {
            "device": machine.device(),
            "exact": jax.default_backend() == "cpu",
            "macs": cost.cost(models.create(model, CLASSES), (frames, crop, crop)).macs,
            "kept": kept_bytes(built, (batch, frames, crop, crop, 3)),
        }
        if lowering is not None:
            self.facts["rows"] = force(lowering, built, (batch, frames, crop, crop, 3), dtype)
        tx = optax.chain(
            optax.add_decayed_weights(DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            optax.sgd(RATE, momentum=MOMENTUM, nesterov=True),
        )
        settings = step.StepSettings(total_steps=10**6)
        trained = methods.create(method, built, **_settings(method))
        data = make_batch(method, frames, crop, batch)
        self.state = step.create_state(
            trained, tx, jax.random.key(0), (frames, crop, crop, 3), settings
        )
        augmentation = augment.AugmentSettings(
            crop=crop, mean=MEAN, std=STD, **_without_colour(augment.AugmentSettings)
        )
        run = functools.partial(
            step.train_step, method=trained, tx=tx, augmentation=augmentation, settings=settings
        )
        self.batch = jax.device_put(data)
        lowered = jax.jit(run, donate_argnums=0).lower(self.state, self.batch)
        self._step = lowered.compile()

    def weights(self):
        """The networks' variables as nested dictionaries of NumPy arrays."""
        return self._jax.device_get(self.state.variables)

    def losses(self, count):
        """Runs steps; returns the loss of each."""
        return [self.steps(1) for _ in range(count)]

    def steps(self, count):
        """Runs steps; returns the last loss, after the device has finished."""
        for _ in range(count):
            self.state, metrics = self._step(self.state, self.batch)
        self._jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def memory(self):
        """(bytes, "peak" or "planned") of the device, after the steps so far."""
        if self._jax.default_backend() != "cpu":
            reported = self._jax.devices()[0].memory_stats() or {}
            if "peak_bytes_in_use" in reported:
                return reported["peak_bytes_in_use"], "peak"
        plan = self._step.memory_analysis()
        return plan.argument_size_in_bytes + plan.temp_size_in_bytes, "planned"

    def peak(self, dtype, size):
        """FLOP/s of a chain of square matrix products; size 0: as large as the backend needs."""
        jax = self._jax
        usual, length = CHAINS.get(jax.default_backend(), CHAINS["gpu"])
        factors = [jax.numpy.asarray(a, dtype) for a in _factors(size or usual)]
        product = jax.jit(lambda a, b: functools.reduce(lambda a, _: a @ b, range(length), a))
        seconds = _quickest(lambda: jax.block_until_ready(product(*factors)))
        return 2 * length * (size or usual) ** 3 / seconds


def kept_bytes(model, clips):
    """Bytes that a training pass over clips of this shape keeps for the gradients of its parameters."""
    import jax

    def backward(variables, x):
        def logits(params):
            given = {**variables, "params": params}
            return model.apply(given, x, train=True, mutable=["batch_stats"])[0].logits

        return jax.vjp(logits, variables["params"])[1]

    x = jax.ShapeDtypeStruct(clips, "float32")
    jaxpr = jax.make_jaxpr(backward)(jax.eval_shape(model.init, jax.random.key(0), x), x).jaxpr
    # Parameters and clips are among the residuals, but they are there anyhow.
    kept = set(jaxpr.outvars) - set(jaxpr.invars)
    return sum(value.aval.size * value.aval.dtype.itemsize for value in kept)


def _settings(method):
    """What the method is given, so that a default that changes does not part the two sides."""
    if method == "supervised":
        return {}
    return {
        "temperature": TEMPERATURE,
        "lambda_kd": LAMBDA_KD,
        "lambda_sim": LAMBDA_SIM,
        "projector_out": PROJECTOR_OUT,
        "predictor_hidden": PREDICTOR_HIDDEN,
    }


def force(lowering, model, clips, dtype):
    """Puts rows before the table of lowerings in this process, and returns them as text.

    Args:
      lowering: one of `LOWERINGS`.
      model: the classifier whose convolutions "mixed" measures.
      clips: shape (B, T, H, W, 3).
      dtype: name of the dtype that the model computes in.
    """
    import jax

    from skd_jax.models import choices

    backend, said = jax.default_backend(), []
    if lowering == "mixed":
        from benchmarks import convolutions

        found = convolutions.quickest(convolutions.cases_of(model, clips, dtype), dtype, runs=5)
        rows = [
            (backend, functools.partial(choices.Convolution.__eq__, convolution), name)
            for convolution, (name, _) in found.items()
        ]
        for convolution, (name, times) in found.items():
            kernel, strides = ("x".join(map(str, part)) for part in convolution[:2])
            others = ", ".join(f"{other} {ms:.2f}" for other, ms in times.items())
            said.append(f"{kernel}, stride {strides}: {name} ({others} ms)")
    else:
        # Folding is for one group of channels.
        fits = choices.every if lowering == "plain" else lambda found: found.groups == 1
        rows = [(backend, fits, lowering)]
    choices.TABLE = (*rows, *choices.TABLE)
    return said


def _factors(size):
    """Two matrices whose products neither grow nor vanish; zeros or ones would flatter a GPU's clock."""
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((size, size), np.float32) / np.float32(size**0.5)) for _ in "ab"]


def _without_colour(settings):
    off = ("brightness", "contrast", "saturation", "hue")
    return {
        field.name: 0.0
        for field in dataclasses.fields(settings)
        if field.name in off or field.name.endswith("_probability")
    }


# --- PyTorch ---


class TorchSide:
    """The same step in PyTorch."""

    def __init__(self, model, method, frames, crop, batch, dtype, channels_last, compiled=None):
        import torch

        from benchmarks import torch_networks, torch_step

        torch.set_num_threads(machine.cores())
        torch.manual_seed(0)
        self._torch, self._model = torch, model
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.facts = {"device": machine.processor(), "exact": self.device == "cpu"}
        if self.device == "cuda":
            self.facts["device"] = torch.cuda.get_device_name()
            # What XLA does by itself: it tries algorithms, and multiplies float32 as TF32.
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        self.trained = torch_step.Trained(torch_networks.NETWORKS[model](CLASSES), method)
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.trained.to(self.device, memory_format=layout)
        if compiled is None:
            compiled = self.device == "cuda"
        self._step = torch_step.make_step(
            self.trained, method, crop, channels_last, dtype, self.device, compiled
        )
        data = make_batch(method, frames, crop, batch)
        self.batch = {
            name: torch.from_numpy(data[name]).to(self.device)
            for name in ("clips", "flip", "label")
        }

    def load(self, weights):
        """Starts from skd_jax's weights."""
        self.trained.load(self._model, weights)

    def losses(self, count):
        return [self.steps(1) for _ in range(count)]

    def steps(self, count):
        for _ in range(count):
            loss = self._step(self.batch)
        return loss.item()  # waits for the device

    def memory(self):
        """(bytes, "peak") of the GPU, None elsewhere."""
        if self.device == "cuda":
            return self._torch.cuda.max_memory_allocated(), "peak"
        return None

    def peak(self, dtype, size):
        torch = self._torch
        usual, length = CHAINS["gpu" if self.device == "cuda" else "cpu"]
        a, b = (
            torch.from_numpy(factor).to(self.device, getattr(torch, dtype))
            for factor in _factors(size or usual)
        )

        @torch.no_grad()
        def product():
            result = functools.reduce(lambda a, _: a @ b, range(length), a)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return result

        return 2 * length * (size or usual) ** 3 / _quickest(product)


def _quickest(action, count=5):
    action()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


# --- Processes ---


def serve(connection, side, options):
    """A side in a process of its own: answers (method name, arguments) with (seconds, result)."""
    # JAX would take three quarters of a GPU's memory at once, beside the other sides; before it is imported.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        served = {"jax": JaxSide, "torch": TorchSide}[side](**options)
        connection.send(("ready", served.facts))
        while (request := connection.recv()) is not None:
            name, arguments = request
            start = time.perf_counter()
            result = getattr(served, name)(*arguments)
            connection.send((time.perf_counter() - start, result))
    except Exception as error:  # noqa: BLE001, told to the parent
        lines = str(error).splitlines() or [""]
        connection.send(("failed", f"{type(error).__name__}: {lines[0]}"))


class SideFailed(RuntimeError):
    """A side's process raised what the message says, or was killed."""


class Side:
    """The parent's end of such a process; raises SideFailed where it fails."""

    def __init__(self, side, **options):
        context = multiprocessing.get_context("spawn")
        self._connection, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, side, options), daemon=True)
        self._process.start()
        far.close()  # else the end of the process would not be seen here
        _, self.facts = self._answer()

    def __call__(self, name, *arguments):
        os.kill(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(OSError):  # it may be gone: the answer says so
            self._connection.send((name, arguments))
        seconds, result = self._answer()
        # Threads of an idle pool may spin for a while, on the cores that the other side needs.
        os.kill(self._process.pid, signal.SIGSTOP)
        return seconds, result

    def _answer(self):
        try:
            state, result = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise SideFailed(f"its process ended with status {self._process.exitcode}") from None
        if state == "failed":
            raise SideFailed(result)
        return state, result

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.kill(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(OSError):  # it may have failed and gone
            self._connection.send(None)
        self._process.join()


def race(sides, rounds, seconds):
    """Seconds per step of every side, for each of the rounds."""
    counts = {name: max(1, round(seconds / side("steps", 1)[0])) for name, side in sides.items()}
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side("steps", 1)  # its memory and caches were the other sides' until now
            times[name].append(side("steps", counts[name])[0] / counts[name])
    return times


def contenders(case, options):
    """{name: options of its `Side`}, "skd_jax" first."""
    found = {"skd_jax": {"side": "jax", **case}}
    for lowering in options.lowerings:
        found[f"skd_jax, {lowering}"] = {"side": "jax", **case, "lowering": lowering}
    if not options.no_torch:
        peer = {"side": "torch", **case, "compiled": options.compile or None}
        if options.dtype == "float32":
            found["PyTorch"] = {**peer, "channels_last": False}
        found["PyTorch, channels_last_3d"] = {**peer, "channels_last": True}
    return found


def check_losses(model, losses, exact):
    """Stops where a side's first losses are not those of skd_jax.

    Args:
      model: name of the network, for the message.
      losses: {side: losses of its first steps}.
      exact: whether the sides compute in float32 and multiply in it too.
    """
    tolerances = TOLERANCES["float32" if exact else "narrower"]
    reference = losses["skd_jax"]
    for name, column in losses.items():
        for i, (loss, wanted) in enumerate(zip(column, reference, strict=True)):
            if not abs(loss - wanted) <= tolerances[min(i, 1)] * abs(reference[0]):
                raise SystemExit(
                    f"{model}: step {i + 1} of {name} has loss {loss:.5f}, of skd_jax {wanted:.5f}; "
                    f"the first losses are {_brief(column)} and {_brief(reference)}"
                )


def compare(case, options):
    """Times one case, or its memory alone, and returns its row."""
    starts = contenders(case, options)
    row = {**case, "clips": case["batch"] * METHODS[case["method"]], "memory": {}, "rows": {}}
    row |= {"losses": {}, "times": {}, "peak_flops": {}, "devices": {}, "kept": {}, "failed": {}}
    groups = [[name] for name in starts] if options.apart else [list(starts)]
    if options.memory:
        groups = [["skd_jax"]]
    weights = None
    for group in groups:
        try:
            weights = measure({name: starts[name] for name in group}, weights, row, options)
        except SideFailed as error:
            row["failed"] |= dict.fromkeys(group, str(error))
            if "skd_jax" in group:  # the others are nothing without it
                return row | summary(row)
    if not options.no_remat:
        try:
            with Side("jax", **case, remat=True) as side:
                if row["memory"]["skd_jax"][1] == "peak":
                    side("steps", 2)
                row["memory"]["remat"] = side("memory")[1]
                row["kept"]["remat"] = side.facts["kept"]
        except SideFailed as error:
            row["failed"]["remat"] = str(error)
    return row | summary(row)


def measure(starts, weights, row, options):
    """Adds to the row what sides that live side by side take; returns skd_jax's weights.

    Args:
      starts: {name: options of its `Side`}.
      weights: of skd_jax, which PyTorch starts from; None where it is among these sides.
    """
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(Side(**start)) for name, start in starts.items()}
        for name, side in sides.items():
            row["devices"][name] = side.facts["device"]
            row["rows"][name] = side.facts.get("rows", [])
            row["exact"] = row.get("exact", row["dtype"] == "float32") and side.facts["exact"]
            if name == "skd_jax":
                row["macs"], row["kept"][name] = side.facts["macs"], side.facts["kept"]
                if not options.no_torch and not options.memory:
                    weights = side("weights")[1]
            if starts[name]["side"] == "torch":
                side("load", weights)
            row["losses"][name] = side("losses", COMPARED_STEPS)[1]
            row["memory"][name] = side("memory")[1]
        check_losses(row["model"], row["losses"], row["exact"])
        if options.memory:
            return weights
        row["times"] |= race(sides, options.rounds, options.seconds)
        measured = () if options.no_peak else ("skd_jax", "PyTorch, channels_last_3d")
        for name in (name for name in measured if name in sides):
            row["peak_flops"][name] = sides[name]("peak", row["dtype"], options.peak)[1]
    return weights


def summary(row):
    """What follows from the times: medians, the faster peer, the ratio of ours to its."""
    medians = {name: statistics.median(column) for name, column in row["times"].items()}
    peers = [name for name in medians if name.startswith("PyTorch")]
    fastest = min(peers, key=medians.get, default=None)
    ratios = []
    if fastest:
        pairs = zip(row["times"]["skd_jax"], row["times"][fastest], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
    return {
        "seconds": medians,
        "peer": fastest,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratio_range": [min(ratios), max(ratios)] if ratios else None,
    }


# --- Tables ---


def step_flops(row):
    """Floating-point operations of a step's convolutions and products, by convention."""
    return 6 * row["macs"] * row["clips"]


def utilisation(row, name):
    """Share of the matrix product's FLOP/s, None where no peak was measured on the side's framework."""
    ours = name.startswith("skd_jax")
    peaks = [v for k, v in row["peak_flops"].items() if k.startswith("skd_jax") == ours]
    return step_flops(row) / row["seconds"][name] / peaks[0] if peaks else None


def print_row(row):
    size = f"{row['frames']}x{row['crop']}x{row['crop']}, batch {row['batch']}"
    print(f"\n{row['model']} {size}, {row['method']}, {row['dtype']}")
    for name, chosen in row["rows"].items():
        for line in chosen:
            print(f"  {name}: {line}")
    for name, seconds in row["seconds"].items():
        share = utilisation(row, name)
        said = "" if share is None else f"{share:7.1%} of the matrix product"
        print(
            f"  {name:28}{seconds * 1e3:10.1f} ms  {row['clips'] / seconds:8.1f} clips/s  "
            f"{step_flops(row) / seconds / 1e9:9.0f} GFLOP/s {said}  "
            f"{seconds / row['seconds']['skd_jax']:5.2f} x"
        )
    for name, reason in row["failed"].items():
        print(f"  {name:28}    failed: {reason}")
    for name, found in row["memory"].items():
        if found:
            print(f"  memory, {name:28}{_mebibytes(found):>18}")
    for name, found in row["kept"].items():
        print(f"  kept, {name:30}{found / 2**20:>10.0f} MiB")
    sys.stdout.flush()


COLUMNS = ("model", "clips", "method", "dtype", "skd_jax", "PyTorch", "ratio (lowest to highest)")
COLUMNS += ("clips/s", "utilisation", "PyTorch's", "memory", "with remat")


def table(rows):
    """All rows as one markdown table, lowerings that were forced in columns of their own."""
    forced = [f"skd_jax, {name}" for name in LOWERINGS]
    forced = [
        name for name in forced if any(name in row["seconds"] | row["failed"] for row in rows)
    ]
    columns = (*COLUMNS, *(name.removeprefix("skd_jax, ") for name in forced))
    lines = [columns, ["---"] * 4 + ["---:"] * (len(columns) - 4)]
    for row in rows:
        seconds, peer = row["seconds"], row["peer"]
        failed = dict.fromkeys(row["failed"], "failed")
        peer_failed = "failed" if any(name.startswith("PyTorch") for name in failed) else ""
        ours = seconds.get("skd_jax")
        ratio = ""
        if peer:
            low, high = row["ratio_range"]
            ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        shares = [utilisation(row, name) if name else None for name in (ours and "skd_jax", peer)]
        lines.append(
            [
                row["model"],
                f"{row['clips']} of {row['frames']}x{row['crop']}x{row['crop']}",
                row["method"],
                row["dtype"],
                failed.get("skd_jax") or _milliseconds(ours),
                _milliseconds(seconds.get(peer)) or peer_failed,
                ratio,
                f"{row['clips'] / ours:.1f}" if ours else "",
                *("" if share is None else f"{share:.1%}" for share in shares),
                *(_mebibytes(row["memory"].get(name)) for name in ("skd_jax", "remat")),
                *(failed.get(name) or _milliseconds(seconds.get(name)) for name in forced),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _milliseconds(seconds):
    return "" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _mebibytes(found):
    return "" if found is None else f"{found[0] / 2**20:.0f} MiB {found[1]}"


def _brief(losses):
    return ", ".join(f"{loss:.5f}" for loss in losses)


def cases(options):
    """{"model", "method", "frames", "crop", "batch", "dtype"} of every row."""
    for model, shape, method in itertools.product(options.models, options.shapes, options.methods):
        sizes = shape.split("x")
        if len(sizes) != 4 or not all(map(str.isdecimal, sizes)) or sizes[1] != sizes[2]:
            raise SystemExit(f"--shapes takes square clips, TxSxSxBATCH; got {shape}")
        frames, crop, _, batch = map(int, sizes)
        case = {"model": model, "method": method, "frames": frames, "crop": crop}
        yield case | {"batch": batch, "dtype": options.dtype}


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="TxSxSxBATCH")
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=METHODS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--lowerings",
        nargs="*",
        default=(),
        choices=LOWERINGS,
        help="timed beside the table's choice",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per side and round")
    parser.add_argument(
        "--peak", type=int, default=0, help="size of the matrix products; 0: by backend"
    )
    parser.add_argument("--no-peak", action="store_true", help="without utilisation")
    parser.add_argument("--cores", type=int, default=0, help="use only so many")
    parser.add_argument("--apart", action="store_true", help="one side after the other")
    parser.add_argument("--compile", action="store_true", help="torch.compile on CPU too")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--no-remat", action="store_true", help="memory without remat alone")
    parser.add_argument("--memory", action="store_true", help="memory alone, nothing timed")
    parser.add_argument("--json", type=pathlib.Path, help="write the rows here too")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    planned = list(cases(options))
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: options.cores] if options.cores else allowed)
    if not (options.no_torch or options.memory) and importlib.util.find_spec("torch") is None:
        raise SystemExit('PyTorch is absent: pip install ".[benchmarks]", or give --no-torch')
    versions = machine.versions("jax", "jaxlib", "torch")
    print(f"{machine.processor()}, {versions}")
    rows = []
    try:
        for case in planned:
            rows.append(compare(case, options))
            print_row(rows[-1])
            if options.json:
                part = options.json.with_name(options.json.name + ".part")
                part.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
                os.replace(part, options.json)
    finally:
        # What is measured is told, even where a later case did not fit the device.
        if rows:
            devices = sorted(set().union(*(row["devices"].values() for row in rows)))
            print(f"\n{'; '.join(devices)}\n\n{table(rows)}", flush=True)
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    memory.restart_with_large_pages()
    # A side that sleeps would outlive its parent.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    sys.exit(main())
