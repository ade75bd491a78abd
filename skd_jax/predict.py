"""Classifies video files with a trained workdir."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from skd_jax import classifier, settings, step, workdir
from skd_jax.data import decode
from skd_jax.data.clips import sample_test
from skd_jax.data.decode import VIDEO_SUFFIXES
from skd_jax.errors import UserError
from skd_jax.progress import Progress

_FRAMES_HELD = 3000  # 150 MB of frames of 128 x 171; longer videos are read twice instead


def run_predict(
    folder: Path, inputs: Iterable[str], output: Path | None, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Classifies videos and prints a table of the best five classes of each.

    Args:
      folder: a trained workdir.
      inputs: video files, or folders that are searched for videos.
      output: JSON file for the predictions; by default predictions.json in the workdir.
      log: takes one line of text.

    Returns:
      For each file {"file", "predictions": [{"class", "probability"}, ...], "notes": [...]}, the notes
      saying what was wrong with a file that could still be used, or {"file", "error"}: what is not
      there or cannot be decoded is reported and the rest go on.

    Raises:
      UserError: nothing was named, or nothing named could be classified.
    """
    files = list(find_videos(inputs))
    trained = classifier.load(folder, log)
    classify = _classifier(trained)
    results = []
    with Progress(len(files), "predicting", "videos") as progress:
        for file, fault in files:
            try:
                result = {"error": fault} if fault else classify(file)
            except decode.DecodeError as error:
                result = {"error": error.reason}
            results.append({"file": str(file), **result})
            progress.update()
    log(_table(results))
    output = output or folder / "predictions.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(output, {"workdir": str(folder), "step": trained.step, "videos": results})
    failed = sum("error" in result for result in results)
    log(f"{len(results) - failed} of {len(results)} videos classified; JSON: {output}")
    if failed == len(results):
        raise UserError("nothing could be classified; the reasons stand above")
    return results


def find_videos(inputs: Iterable[str]) -> Iterator[tuple[Path, str | None]]:
    """The files named, and the video files below the folders named, sorted.

    Yields:
      A path, and why there is nothing to classify at it: no such file, or a folder without videos.

    Raises:
      UserError: nothing was named.
    """
    inputs = list(inputs)
    if not inputs:
        raise UserError(
            "name what to classify: main.py --mode=predict --workdir=W VIDEO_OR_FOLDER ..."
        )
    for name in inputs:
        path = Path(name)
        if not path.is_dir():
            yield path, None if path.exists() else "no such file or folder"
            continue
        found = sorted(
            p for p in path.rglob("[!.]*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()
        )
        if not found:
            yield path, f"no video in this folder ({', '.join(sorted(VIDEO_SUFFIXES))})"
        yield from ((video, None) for video in found)


def _classifier(trained: classifier.Trained) -> Callable[[Path], dict[str, Any]]:
    config = trained.config
    run = jax.jit(
        functools.partial(
            step.eval_step, method=trained.method, augmentation=settings.augmentation(config)
        )
    )

    def classify(path: Path) -> dict[str, Any]:
        batch, notes = _clips(path, config)
        batch |= {name: np.zeros(1, np.int32) for name in ("label", "index", "mask")}
        probabilities = np.asarray(run(trained.variables, batch)["probabilities"][0])
        best = np.argsort(-probabilities, kind="stable")[:5]
        predictions = [
            {"class": trained.class_names[k], "probability": float(probabilities[k])} for k in best
        ]
        return {"predictions": predictions, "notes": list(notes)}

    return classify


def _clips(path: Path, config: dict[str, Any]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    data, length = config["data"], config["clips"]["frames"]
    evaluation = settings.evaluation(config)

    def stream() -> decode.FrameStream:
        return decode.iter_frames(
            path,
            short_side=data["frame_size"],
            max_fps=data["max_fps"] or None,
            max_frames=data.get("max_frames") or None,
            threads=0,
            width=data.get("frame_width") or None,
            antialias=data.get("antialias", True),
        )

    first_pass = stream()
    iterator = iter(first_pass)
    held = list(itertools.islice(iterator, _FRAMES_HELD))
    count = len(held) + sum(1 for _ in iterator)
    height, width = held[0].shape[:2]
    index, window = sample_test(
        count,
        height,
        width,
        frames=length,
        stride=config["clips"]["stride"],
        clips=evaluation.clips,
        crops=evaluation.crops,
        fraction=settings.crop_fraction(config),
    )
    frames = dict(enumerate(held))
    if count > len(held):
        wanted = set(index.ravel().tolist())
        frames = {i: frame for i, frame in enumerate(stream()) if i in wanted}
    canvas = data["frame_size"]
    clips = np.zeros((1, len(index), length, canvas, canvas, 3), np.uint8)
    for view, (y, x, h, w) in enumerate(window):
        for t, i in enumerate(index[view].tolist()):
            clips[0, view, t, :h, :w] = frames[i][y : y + h, x : x + w]
    return {"clips": clips, "size": window[None, :, 2:].astype(np.int32)}, first_pass.notes


def _table(results: list[dict[str, Any]]) -> str:
    names = [Path(result["file"]).name for result in results]
    if len(set(names)) < len(names):  # the same name in several folders
        names = [result["file"] for result in results]
    width = max(map(len, names))
    lines = []
    for name, result in zip(names, results, strict=True):
        if "error" in result:
            lines.append(f"{name:{width}}  not classified: {result['error']}")
            continue
        best = [f"{p['class']} {p['probability']:.1%}" for p in result["predictions"]]
        notes = f"  (note: {'; '.join(result['notes'])})" if result["notes"] else ""
        lines.append(f"{name:{width}}  " + ", ".join(best) + notes)
    return "\n".join(lines)
