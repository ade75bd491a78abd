"""The training loop: any method, any iterator of batches."""

import contextlib
import dataclasses
import functools
import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from skd_jax import checkpoint, evaluate, metrics, parallel, step
from skd_jax.augment import AugmentSettings
from skd_jax.errors import UserError
from skd_jax.methods import Method
from skd_jax.progress import Progress
from skd_jax.workdir import CHECKPOINTS

PyTree = Any
_ADVICE = "Lower optim.learning_rate, or set optim.clip_norm or a longer optim.warmup, with a new --workdir"
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to look up; all intervals in steps.

    Attributes:
      total_steps: updates in all.
      clip_shape: (T, H, W, 3) of the clips the model sees.
      seed: of the initial parameters and of randomness in the networks.
      log_every: interval of metrics rows.
      eval_every: interval of evaluations on the validation split; the last step is always evaluated.
      checkpoint_every: interval of checkpoints; evaluations and the last step make one too.
      keep: latest checkpoints kept, beside the best.
      accumulate: micro-batches of a step.
      ema_decay: of the weights' moving average; 0 keeps none.
      replicas: "pmap" or "shard_map".
      freeze: patterns of the parameters that stay as they are, see `finetune`.

    Raises:
      UserError: a value out of range.
    """

    total_steps: int
    clip_shape: tuple[int, int, int, int]
    seed: int = 0
    log_every: int = 20
    eval_every: int = 200
    checkpoint_every: int = 200
    keep: int = 2
    accumulate: int = 1
    ema_decay: float = 0.0
    replicas: str = "pmap"
    freeze: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (
            "total_steps",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep",
            "accumulate",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"config.train: {name} is {getattr(self, name)}; take 1 or more")
        if not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"config.train.ema_decay is {self.ema_decay}; take one in [0, 1)")
        if self.seed < 0:
            raise UserError(f"config.train.seed is {self.seed}; take 0 or more")


@dataclasses.dataclass(frozen=True)
class Data:
    """What the loop reads.

    Attributes:
      train: from a step, this process's training batches from that step on.
      validation: one pass over this process's validation batches, or None without that split.
      ids: names of the videos at the given rows of the training split, for messages.
    """

    train: Callable[[int], Iterator[Batch]]
    validation: Callable[[], Iterable[Batch]] | None
    ids: Callable[[np.ndarray], Sequence[str]]


def train(
    method: Method,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    augmentation: AugmentSettings,
    settings: LoopSettings,
    data: Data,
    workdir: Path,
    log: Callable[[str], None] = print,
    initial: Callable[[], PyTree] | None = None,
    teacher: Callable[[], PyTree] | None = None,
    begin: Callable[[step.TrainState], step.TrainState] | None = None,
    label: str = "training",
) -> bool:
    """Trains to `settings.total_steps`, going on from the last checkpoint in the workdir.

    Args:
      method: what is trained.
      tx: the optimiser.
      schedule: its learning rate, for the log.
      augmentation: of the training clips.
      settings: lengths and intervals.
      data: batches.
      workdir: gets checkpoints/, metrics.jsonl and tensorboard/.
      log: takes one line of text; silent in all processes but the first.
      initial: gives the classifier's variables to begin with, see `step.create_state`; called by a
        new run only, never by one that goes on.
      teacher: gives the variables of `method.teacher`, where the method has one, likewise.
      begin: changes the first state, likewise; see `stages`.
      label: what the progress line says is being done.

    Returns:
      True when finished; False when a SIGTERM stopped it, its state saved.

    Raises:
      UserError: the loss is not finite, a checkpoint does not fit, cannot be read or written, or
        the method needs a validation split and there is none, or
        an evaluation before the last step.
      ValueError: the training batches end too early.
    """
    if method.needs_validation and data.validation is None:
        raise UserError(
            f"{type(method).__name__} takes its teacher by the validation split, and there is none; "
            "set config.data.validation_fraction or add a val/ folder"
        )
    if method.needs_validation and settings.eval_every >= settings.total_steps:
        raise UserError(
            f"{type(method).__name__} takes its teacher at an evaluation during the training, and there is none: "
            f"config.train.eval_every is {settings.eval_every} steps, config.train.duration {settings.total_steps}; "
            "shorten the former"
        )
    step_settings = step.StepSettings(
        settings.total_steps,
        settings.seed,
        settings.accumulate,
        settings.ema_decay,
        settings.freeze,
    )
    create = functools.partial(
        step.create_state, method, tx, jax.random.key(settings.seed), settings.clip_shape
    )
    replicas = parallel.create(settings.replicas)
    checkpoints = checkpoint.Checkpoints(workdir / CHECKPOINTS, settings.keep, log=log)
    restored = checkpoints.restore_latest()
    if restored is None:
        if method.teacher is not None and teacher is None:
            raise UserError("a method with a teacher needs the teacher's variables; give `teacher`")
        given = {"initial": initial, "teacher": teacher}
        first, state = 0, create(step_settings, **{k: v() for k, v in given.items() if v})
        state = begin(state) if begin else state
    else:
        first, flat = restored
        template = jax.eval_shape(lambda: create(step_settings))
        state = checkpoint.unflatten(flat, template, f"{workdir}/checkpoints/{first}")
        log(f"resuming at step {first} of {settings.total_steps}")
    state = replicas.put(state)
    shared = {"method": method, "augmentation": augmentation}
    train_step = replicas.train(
        functools.partial(step.train_step, tx=tx, settings=step_settings, **shared)
    )
    eval_step = replicas.evaluate(functools.partial(step.eval_step, **shared))
    after_evaluation = replicas.update(method.after_evaluation)
    writer = metrics.MetricsWriter(workdir, first, active=jax.process_index() == 0)

    def validate(number: int, state: step.TrainState) -> tuple[step.TrainState, dict | None]:
        if data.validation is None:
            return state, None
        raw, averaged = evaluation_of(state, eval_step, replicas, data.validation)
        # Selection looks at the weights that will be used: the averaged ones, where there are any.
        chosen = averaged or raw
        if not math.isfinite(chosen["loss"]):
            raise UserError(
                f"validation loss {chosen['loss']} at step {number}; the last good checkpoint is "
                f"kept. {_ADVICE}"
            )
        best = checkpoints.best()
        improved = best is None or checkpoint.rank(chosen) > checkpoint.rank(best[1])
        log(
            f"step {number}: validation top-1 {raw['top1']:.4f}, loss {raw['loss']:.4f}"
            + (f"; averaged weights {averaged['top1']:.4f}" if averaged else "")
            + (" (best so far)" if improved else "")
        )
        values = raw | {f"ema_{name}": value for name, value in (averaged or {}).items()}
        writer.write(number, "validation", values)
        if method.needs_validation:
            judged = state.ema or state.variables
            state = state.replace(
                method_state=after_evaluation(state.method_state, judged, improved)
            )
        return state, chosen

    steps = _Steps(data, workdir, settings, schedule, writer, log)
    with (
        contextlib.closing(writer),
        contextlib.closing(checkpoints),
        _Termination() as termination,
        Progress(settings.total_steps, label, "steps", done=first) as progress,
    ):
        if first < settings.total_steps:
            log("compiling the training step (up to some minutes for a large model)")
        batches = parallel.prefetch(steps.timed(data.train(first)), replicas.shard)
        for number in range(first + 1, settings.total_steps + 1):
            host_batch, device_batch = next(batches, (None, None))
            if host_batch is None:
                raise ValueError(f"the training batches ended before step {number}")
            state, values = train_step(state, device_batch)
            steps.add(number, values, host_batch["index"])
            compiling = number == first + 1
            if compiling:
                steps.mark()
            steps.drain(replicas, keep=0 if compiling else 2)
            last = number == settings.total_steps
            stopping = termination.requested(number)
            evaluating = last or number % settings.eval_every == 0
            if evaluating or stopping or number % settings.checkpoint_every == 0:
                # Nothing is saved or judged before it is known that every step so far was finite.
                steps.drain(replicas)
                with steps.aside():
                    state, chosen = validate(number, state) if evaluating else (state, None)
                    checkpoints.save(number, replicas.get(state), chosen)
            if compiling:
                progress.mark()  # the rate is that of the steps, without the compilation
            progress.update(1, steps.note())
            if stopping or (last and termination.asked):
                checkpoints.wait()
                log(f"stopped by SIGTERM at step {number}, state saved; the same command goes on")
                return False
    return True


def evaluation_of(
    state: step.TrainState,
    eval_step: Callable,
    replicas: parallel.Replicas,
    batches: Callable[[], Iterable[Batch]],
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Loss and top-1 of the raw weights, and of the averaged ones if the state has them."""
    results = [
        evaluate.loss_and_top1(evaluate.score(eval_step, replicas, variables, batches()))
        for variables in (state.variables, state.ema)
        if variables is not None
    ]
    return results[0], results[1] if len(results) > 1 else None


class _Steps:
    """Metrics of the steps under way: fetched late, so that the devices never wait for the host."""

    def __init__(self, data, workdir, settings, schedule, writer, log):
        self._ids, self._workdir = data.ids, workdir
        self._log_every, self._last_step = settings.log_every, settings.total_steps
        self._schedule, self._writer, self._log = jax.jit(schedule), writer, log
        self._schedule(0)  # compiled here, not between two steps
        self._pending: deque = deque()
        self._rows: list[dict[str, float]] = []
        self._last: dict[str, float] = {}
        self._share = 0.0
        self._warned = False
        self.mark()

    def mark(self) -> None:
        """Rates count from here: what came before was compilation."""
        self._timed, self._waited, self._since = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no part of a step and so not of its rate: validation, saving."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; counts the time spent waiting for them."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def add(self, number: int, values: PyTree, index: np.ndarray) -> None:
        """Notes a step that has been sent to the devices."""
        self._pending.append((number, values, index))

    def drain(self, replicas: parallel.Replicas, keep: int = 0) -> None:
        """Fetches all but the last `keep` steps; raises UserError at one that is not finite."""
        logged = False
        while len(self._pending) > keep:
            number, values, index = self._pending.popleft()
            values = {name: float(value) for name, value in replicas.get(values).items()}
            if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
                raise self._not_finite(number, values, index)
            self._rows.append(values)
            self._timed += 1
            if number % self._log_every == 0 or number == self._last_step:
                self._flush(number)
                logged = True
        if logged:
            # Not between two rows of one call: its later steps may be done already, at no rate of their own.
            self.mark()

    def note(self) -> str:
        """Loss parts and the share of time spent waiting, for the progress line."""
        shown = {n: v for n, v in self._last.items() if n.startswith("loss") or n == "top1"}
        parts = [f"{name} {value:.3f}" for name, value in shown.items()]
        return ", ".join([*parts, f"waiting for data {self._share:.0%}"]) if parts else ""

    def _flush(self, number: int) -> None:
        now = time.monotonic()
        elapsed = now - self._since
        self._last = {n: float(np.mean([row[n] for row in self._rows])) for n in self._rows[0]}
        self._share = min(self._waited / elapsed, 1.0) if elapsed else 0.0
        extra = {
            "learning_rate": float(self._schedule(number - 1)),
            "steps_per_second": self._timed / elapsed if elapsed else 0.0,
            "data_wait": self._share,
        }
        self._writer.write(number, "train", self._last | extra)
        warning = metrics.collapse_warning(self._last)
        if warning and not self._warned:
            self._log(f"step {number}: {warning}")
        self._warned = warning is not None
        self._rows = []

    def _not_finite(self, number: int, values: dict[str, float], index: np.ndarray) -> UserError:
        ids = list(self._ids(index))
        report = {"step": number, "metrics": {n: str(v) for n, v in values.items()}, "videos": ids}
        path = self._workdir / f"not_finite_step_{number}_process_{jax.process_index()}.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
        return UserError(
            f"loss {values['loss']}, gradient norm {values['grad_norm']} at step {number}; "
            f"videos {', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''} (all in {path}). The last "
            f"good checkpoint is kept. {_ADVICE}"
        )


class _Termination:
    """Notices SIGTERM; under several processes all of them stop at the same step."""

    def __init__(self):
        self.asked = False  # of this process, where it is the only one

    def __enter__(self):
        if jax.process_count() == 1:
            try:
                self._old = signal.signal(signal.SIGTERM, self._ask)
            except ValueError:  # not in the main thread, as in some notebooks
                self._old = None
        return self

    def __exit__(self, *_):
        if jax.process_count() == 1 and self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    def requested(self, number: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() > 1:
            # JAX's coordinator hears the signal of any process and names one step for all.
            return multihost_utils.reached_preemption_sync_point(number)
        return self.asked

    def _ask(self, *_):
        self.asked = True
