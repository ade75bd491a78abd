"""Two-view training clips per second: the input pipeline beside random access to the video files.

    python -m benchmarks.input_pipeline --fixtures FIXTURES --ucf101 UCF101

Each reader gets the same videos, frames and crop windows, drawn by the pipeline's own sampler, and
the same cores. PyAV, decord and torchcodec open the original file, seek, decode, cut out the
windows and resize them to 112 pixels: one video per task, one process per core, one decoder thread
each, and they need not hand their clips over. The pipeline reads a data set prepared from the same
files. It leaves resizing to the device and so is timed three times: as it stands; with Pillow
resizing on the same cores as it does for PyAV and decord, which makes the work the same; and with
the device's own jitted resizing, compiled for the CPU. "Bare" is a loop of
`tf.io.decode_and_crop_jpeg` over the same frames and windows, already in memory, that keeps
nothing: the ceiling. "In memory" is `config.data.in_memory=True`, for data sets that fit: the prepared
frames are decoded once, before the clock starts; what that took in time and memory is printed.

Readers take turns and are compared round by round, so that a machine that slows down slows them
all. A reader that cannot be loaded is printed as absent. torchcodec needs FFmpeg's shared libraries
on the system; it is timed as it comes, and without its scan of the file for exact frame times.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time

import numpy as np

from skd_jax import memory

FRAMES, STRIDE, SIZE, STORED, BATCH = 16, 2, 112, 128, 8
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")
OURS, PILLOW, XLA = "skd_jax", "skd_jax + Pillow resize", "skd_jax + XLA resize"
MEMORY, MEMORY_XLA = "skd_jax, in memory", "  in memory + XLA resize"
BARE = "bare decode loop"


# --- Readers of original files: (path, frames (V, T), windows (V, 4) as shares of the frame) ---


def _boxes(windows, height, width):
    """Windows in pixels (y0, y1, x0, x1) of a frame."""
    y, x, h, w = np.asarray(windows).T
    boxes = np.stack([y * height, (y + h) * height, x * width, (x + w) * width], axis=1)
    return np.rint(boxes).astype(int).tolist()


def _resized(images, windows):
    """(V, T) frames as arrays -> uint8 (V, T, SIZE, SIZE, 3)."""
    from PIL import Image

    out = np.empty((len(images), len(images[0]), SIZE, SIZE, 3), np.uint8)
    for v, (top, bottom, left, right) in enumerate(_boxes(windows, *images[0][0].shape[:2])):
        for t, image in enumerate(images[v]):
            cut = Image.fromarray(image[top:bottom, left:right])
            out[v, t] = cut.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return out


@functools.cache
def _first_time(path):
    """When the first frame is shown; looked up once and not timed, as an index would be."""
    import av

    with av.open(path) as container:
        return next(container.decode(video=0)).pts


def read_pyav(path, frames, windows):
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate, base, origin = stream.average_rate, stream.time_base, _first_time(path)
        images = []
        for view in frames:
            wanted = set(view.tolist())
            first, last = min(wanted), max(wanted)
            container.seek(origin + int(first / rate / base), stream=stream, backward=True)
            found = {}
            for frame in container.decode(stream):
                number = round((frame.pts - origin) * base * rate)
                if number in wanted or number >= last:
                    found[number] = frame.to_ndarray(format="rgb24")
                if number >= last:
                    break
            # A damaged or irregular file may lack a frame at the expected time.
            nearest = {n: min(found, key=lambda m, n=n: abs(m - n)) for n in wanted}
            images.append([found[nearest[n]] for n in view.tolist()])
    return _resized(images, windows)


def read_decord(path, frames, windows):
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    images = reader.get_batch(np.minimum(frames, len(reader) - 1).ravel().tolist()).asnumpy()
    return _resized(images.reshape(*frames.shape, *images.shape[1:]), windows)


def read_torchcodec(path, frames, windows, seek_mode="exact"):
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)
    decoder = VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=seek_mode)
    images = decoder.get_frames_at(np.minimum(frames, len(decoder) - 1).ravel().tolist()).data
    out = []
    for (top, bottom, left, right), view in zip(
        _boxes(windows, *images.shape[-2:]), images.split(frames.shape[1]), strict=True
    ):
        view = view[..., top:bottom, left:right]
        out.append(
            torch.nn.functional.interpolate(view, (SIZE, SIZE), mode="bilinear", antialias=True)
        )
    return torch.stack(out).permute(0, 1, 3, 4, 2).contiguous().numpy()


PEERS = {
    "PyAV": read_pyav,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
    "torchcodec, approximate": functools.partial(read_torchcodec, seek_mode="approximate"),
}


def drop_cache(paths):
    """Asks the kernel to forget the cached pages of files."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        with contextlib.closing(os.fdopen(file)):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _probe(peer, path):
    """In a worker: why the reader cannot be used, or None; also loads its library."""
    try:
        PEERS[peer](path, np.zeros((1, 2), int), WHOLE)
    except Exception as error:  # noqa: BLE001, whatever keeps a library from loading
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:120]
    return None


def _work(peer, path, frames, windows, cold, keep):
    if cold:
        drop_cache([path])
    clips = PEERS[peer](path, frames, windows)
    assert clips.shape == (*frames.shape, SIZE, SIZE, 3), clips.shape
    return clips if keep else None


# --- Contenders: each a function (seconds, cold) -> clips per second ---


def peer_contender(peer, pool, workers, samples, views):
    def run(seconds, cold):
        tasks = itertools.cycle(samples)
        start, done, running = time.perf_counter(), 0, set()
        while time.perf_counter() - start < seconds:
            while len(running) < 2 * workers:
                running.add(pool.submit(_work, peer, *next(tasks), cold, False))
            ended, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            done += len([future.result() for future in ended])
        done += len([future.result() for future in running])
        return done * views / (time.perf_counter() - start)

    return run


def our_contender(split, settings, workers, resize, pixels=None):
    from skd_jax.data import pipeline
    from skd_jax.data.batches import train_batches

    def run(seconds, cold):
        batches = train_batches(
            split, settings, batch_size=BATCH, seed=0, threads=workers, pixels=pixels
        )
        for _ in range(pipeline.PREFETCH + 2):  # what was built up before the clock starts
            resize(next(batches))
        start, done, last = time.perf_counter(), 0, None
        while time.perf_counter() - start < seconds:
            if cold:
                drop_cache(split.shard_paths)
            last = resize(next(batches))
            done += 1
        np.asarray(last)  # waits for the device
        rate = done * BATCH * settings.views / (time.perf_counter() - start)
        batches.close()
        return rate

    return run


def bare_contender(split, plans, workers):
    import tensorflow as tf

    data, windows = [], []
    for plan in plans:
        for row, frames, window in zip(plan.row, plan.frames, plan.window, strict=True):
            with open(split.shard_paths[split.shard[row]], "rb") as file:
                for view in split.first_frame[row] + frames:
                    clip = []
                    for at in view:
                        file.seek(split.frame_begin[at])
                        clip.append(file.read(split.frame_length[at]))
                    data.append(clip)
            windows.append(window)

    def decode(data, window):
        images = [
            tf.io.decode_and_crop_jpeg(data[t], window, channels=3, dct_method="INTEGER_ACCURATE")
            for t in range(FRAMES)
        ]
        return tf.stack([image[0, 0, 0] for image in images])

    dataset = tf.data.Dataset.from_tensor_slices((data, np.concatenate(windows))).repeat()
    dataset = dataset.map(decode, num_parallel_calls=workers)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    dataset = dataset.with_options(options).batch(BATCH)

    def run(seconds, cold):
        batches = iter(dataset)
        next(batches)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            done += BATCH
        return done / (time.perf_counter() - start)

    return run


def pillow_resize(pool):
    """Windows to (B, V, T, SIZE, SIZE, 3) uint8 in the threads of `pool`."""

    def one(clip, size):
        return _resized([[image[: size[0], : size[1]] for image in clip]], WHOLE)

    def resize(batch):
        clips = batch["clips"].reshape(-1, *batch["clips"].shape[2:])
        return np.concatenate(list(pool.map(one, clips, batch["size"].reshape(-1, 2))))

    return resize


def xla_resize():
    """The device's part of the work, jitted, on this machine's CPU."""
    import jax

    from skd_jax import augment

    settings = augment.AugmentSettings(crop=SIZE)
    cpu = jax.local_devices(backend="cpu")[0]
    jitted = jax.jit(lambda clips, size: augment.eval_clips(clips, size, settings))
    return lambda batch: jitted(*jax.device_put((batch["clips"], batch["size"]), cpu))


# --- One data set ---


def prepared_split(name, videos, folder, workers):
    from skd_jax.data import prepare, prepared
    from skd_jax.data.index import Video, VideoIndex

    index = VideoIndex(
        name=name,
        class_names=("any",),
        splits={
            "train": tuple(Video(str(p), 0, f"any/{i:05}", str(i)) for i, p in enumerate(videos))
        },
        split_sources={"train": "benchmark"},
    )
    settings = prepare.PrepareSettings(frame_size=STORED, workers=workers)
    prepare.prepare(index, folder, settings, log=lambda line: None)
    return prepared.load_split(folder, "train")


def decoded(split, workers):
    """The split's frames in memory; prints what that took."""
    from skd_jax.data import in_memory

    start = time.perf_counter()
    pixels = in_memory.load(split, workers)
    took = time.perf_counter() - start
    print(f"In memory: {in_memory.size_in_bytes(split) / 1e9:.2f} GB, decoded in {took:.0f} s")
    return pixels


def compare(title, videos, folder, workers, rounds, seconds):
    """Prepares `videos` in `folder`, times all readers on them and prints a table."""
    from skd_jax.data.batches import train_batches
    from skd_jax.data.clips import ClipSettings
    from skd_jax.data.plans import train_plan

    start = time.perf_counter()
    split = prepared_split("benchmark", videos, folder, workers)
    took = time.perf_counter() - start
    by_id = {f"any/{i:05}": str(path) for i, path in enumerate(videos)}
    settings = ClipSettings(frames=FRAMES, stride=STRIDE, canvas=STORED)
    plans = [train_plan(split, settings, step, batch_size=BATCH, seed=0) for step in range(16)]
    samples = []
    for plan in plans:
        for row, frames, window in zip(plan.row, plan.frames, plan.window, strict=True):
            size = np.tile([split.height[row], split.width[row]], 2)
            samples.append((by_id[str(split.ids[row])], frames, window / size))

    original = sum(os.path.getsize(path) for path in videos)
    stored = sum(os.path.getsize(path) for path in split.shard_paths)
    print(
        f"\n## {title}\n{len(split)} videos of {np.mean(split.num_frames):.0f} frames on average; "
        f"originals {original / 1e6:.0f} MB, prepared {stored / 1e6:.0f} MB in {took:.0f} s"
    )
    os.sync()  # only clean pages can be dropped from the cache

    contenders, absent, differences = {}, {}, {}
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        for peer in PEERS:
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, context))
            probes = [pool.submit(_probe, peer, samples[0][0]) for _ in range(2 * workers)]
            absent[peer] = next((p.result() for p in probes if p.result()), None)
            if absent[peer] is None:
                contenders[peer] = peer_contender(peer, pool, workers, samples, settings.views)
                kept = [
                    pool.submit(_work, peer, *sample, False, True) for sample in samples[:BATCH]
                ]
                differences[peer] = [future.result() for future in kept]
        contenders[BARE] = bare_contender(split, plans, workers)
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
        resizes = {
            OURS: lambda batch: batch["clips"],
            PILLOW: pillow_resize(threads),
            XLA: xla_resize(),
        }
        for name, resize in resizes.items():
            contenders[name] = our_contender(split, settings, workers, resize)
        pixels = decoded(split, workers)
        for name, resize in ((MEMORY, resizes[OURS]), (MEMORY_XLA, resizes[XLA])):
            contenders[name] = our_contender(split, settings, workers, resize, pixels)

        first = next(train_batches(split, settings, batch_size=BATCH, seed=0))
        same = resizes[PILLOW](first).astype(int)
        for peer, theirs in differences.items():
            differences[peer] = np.abs(np.concatenate(theirs) - same).mean()

        for cold in (False, True):
            from_files = [n for n in contenders if n not in (BARE, MEMORY, MEMORY_XLA)]
            rates = {name: [] for name in (from_files if cold else contenders)}
            for _ in range(rounds):
                for name, column in rates.items():
                    column.append(contenders[name](seconds, cold))
            print_table(rates, absent, differences, cold)
    return rates


def print_table(rates, absent, differences, cold):
    cache = "dropped before every batch or video" if cold else "holds the files"
    print(f"\nPage cache {cache}")
    shown = {OURS: OURS, PILLOW: "+ Pillow"} | ({} if cold else {MEMORY: "in memory"})
    heads = "".join(f"{head:>11}" for head in shown.values())
    print(f"{'reader':26}{'clips/s':>9}{'range':>14}{heads}{'difference':>12}")
    for name, column in rates.items():
        ratios = "".join(
            f"{np.median(np.divide(rates[mine], column)):9.2f} x" if mine != name else f"{'-':>11}"
            for mine in shown
        )
        rate, low, high = (
            f"{value:.0f}" if value >= 100 else f"{value:.1f}"
            for value in (np.median(column), min(column), max(column))
        )
        difference = f"{differences[name]:.1f}" if name in differences else ""
        print(f"{name:26}{rate:>9}{f'{low}-{high}':>14}{ratios}{difference:>12}")
    for name, reason in absent.items():
        if reason is not None:
            print(f"{name:26}   absent ({reason})")
    sys.stdout.flush()


def copies(folder, target, count):
    """`count` copies of every video in `folder`."""
    originals = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES]
    if not originals:
        raise SystemExit(f"no videos in {folder}")
    target.mkdir(parents=True)
    return [
        pathlib.Path(shutil.copy(path, target / f"{path.stem}-{i}{path.suffix}"))
        for i in range(count)
        for path in originals
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fixtures", type=pathlib.Path, help="folder with kinetics/ and ucf101/")
    parser.add_argument("--ucf101", type=pathlib.Path, help="folder with UCF-101/ or the classes")
    parser.add_argument("--copies", type=int, default=16, help="of every fixture")
    parser.add_argument("--videos", type=int, default=128, help="drawn from --ucf101")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per reader and round")
    parser.add_argument("--cores", type=int, default=0, help="use only so many")
    parser.add_argument("--folder", help="where to put the data meanwhile (a real disk)")
    options = parser.parse_args()
    if options.fixtures is None and options.ucf101 is None:
        parser.error("nothing to read: give --fixtures, --ucf101 or both")

    cores = sorted(os.sched_getaffinity(0))
    cores = cores[: options.cores] if options.cores else cores
    os.sched_setaffinity(0, cores)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("tensorflow", "jax", "av", "decord", "torchcodec", "torch")
        if importlib.util.find_spec(name)
    ]
    print(
        f"Two-view clips of {FRAMES} frames, stride {STRIDE}, random windows, {SIZE} pixels\n"
        f"{len(cores)} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"{', '.join(versions)}\n"
        "clips/s: median of the rounds\n"
        f"{OURS}, + Pillow, in memory: how many times as fast these are, median of the rounds' ratios\n"
        "difference: mean absolute difference (0-255) from skd_jax's pixels, small if frames agree"
    )

    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        root = pathlib.Path(temporary)
        sources = []
        if options.fixtures:
            for name in ("kinetics", "ucf101"):
                videos = copies(options.fixtures / name, root / f"{name}-videos", options.copies)
                sources.append((f"{options.copies} copies of {name}'s fixtures", videos))
        if options.ucf101:
            found = sorted(options.ucf101.rglob("*.avi"))
            if not found:
                raise SystemExit(f"no .avi files below {options.ucf101}")
            chosen = np.random.default_rng(0).permutation(len(found))[: options.videos]
            sources.append((f"videos of {options.ucf101.name}", [found[i] for i in sorted(chosen)]))
        for i, (title, videos) in enumerate(sources):
            compare(
                title, videos, root / f"prepared-{i}", len(cores), options.rounds, options.seconds
            )
    return 0


if __name__ == "__main__":
    memory.restart_with_large_pages()  # as main.py does
    memory.keep_freed_memory()
    sys.exit(main())
