"""From a config to prepared data, and from prepared data to batches for the loop."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from skd_jax import parallel, settings, train
from skd_jax.data import batches as clip_batches
from skd_jax.data import in_memory, prepare, prepared, synthetic
from skd_jax.data import index as index_lib
from skd_jax.data.clips import short_video_share
from skd_jax.data.files import is_remote
from skd_jax.errors import UserError
from skd_jax.methods import Method

Config = Mapping[str, Any]


def ensure_prepared(config: Config, log: Callable[[str], None]) -> str | None:
    """Prepares the data set that a config names, unless that is done already.

    Under several processes the first one does it and the others wait.

    Args:
      config: all of it.
      log: takes one line of text.

    Returns:
      The prepared directory; None when config.data.shards left shards for other machines to write.

    Raises:
      UserError: as `build_index` and `prepare` do.
    """
    data = config["data"]
    if not data["root"]:
        if data["prepared"]:  # the videos themselves are no longer needed
            return _as_configured(_absolute(data["prepared"]), data)
        raise UserError(
            "config.data.root is not set; add --config.data.root=FOLDER, where the videos are "
            "(or --config.data.prepared=FOLDER, an already prepared data set)"
        )
    if "synthetic" in data:
        videos = settings.dataclass_from(
            synthetic.SyntheticSettings, data["synthetic"], "data.synthetic"
        )
        parallel.on_first(lambda: synthetic.write_dataset(Path(data["root"]), videos))
    index = index_lib.build_index(
        data["name"],
        data["root"],
        annotations=data["annotations"] or None,
        split=data["split"],
        classes=_class_names(data),
        validation_fraction=data["validation_fraction"],
        test_fraction=data["test_fraction"],
        seed=data["seed"],
        groups_csv=data["groups_csv"] or None,
    )
    storage = prepare.PrepareSettings(
        frame_size=data["frame_size"],
        frame_width=data["frame_width"] or None,
        antialias=data["antialias"],
        jpeg_quality=data["jpeg_quality"],
        max_fps=data["max_fps"] or None,
        max_frames=data["max_frames"] or None,
        min_frames=data["min_frames"],
        workers=data["workers"],
    )
    name = f"{data['name']}-{prepare.fingerprint(index, storage)[:12]}"
    folder = epath.Path(_absolute(data["prepared"] or os.path.join("prepared", name)))
    for note in index.notes:
        log(f"warning: {note}")
    complete = parallel.on_first(
        lambda: prepare.prepare(index, folder, storage, shards=data["shards"] or None, log=log)
    )
    return None if complete is False else os.fspath(folder)


def _absolute(folder: str) -> str:
    return folder if is_remote(folder) else os.path.abspath(folder)


def _as_configured(folder: str, data: Config) -> str:
    """The folder, if it holds a complete data set chosen and stored as the config says."""
    try:
        info = prepared.load_info(folder)
    except UserError as error:
        raise UserError(f"{error}, with --config.data.root=FOLDER, where the videos are") from None
    stored = {"frame_width": 0, "antialias": True, **info["settings"], "name": info["name"]}
    stored |= {key: stored[key] or 0 for key in ("frame_width", "max_fps")}
    wrong = [
        f"{key} is {stored[key]} there, {data[key]} in the config"
        for key in ("name", "frame_size", "frame_width", "antialias", "max_fps", "jpeg_quality")
        if stored[key] != data[key]
    ]
    # Directories of before the splits' choice was noted are taken as they are.
    wrong += [
        f"{key} is {value} there, {data[key]} in the config"
        for key, value in sorted(info.get("selection", {}).items())
        if value != data[key]
    ]
    if data["classes"] and sorted(_class_names(data)) != sorted(info["class_names"]):
        wrong.append(f"its classes are {', '.join(info['class_names'])}")
    if wrong:
        raise UserError(
            f"{folder} was prepared otherwise: {'; '.join(wrong)}. Set these config.data values to "
            "what is there, or set config.data.root to prepare anew"
        )
    return folder


def _class_names(data: Config) -> tuple[str, ...]:
    return tuple(name.strip() for name in data["classes"].split(",") if name.strip())


def describe(folder: str) -> dict[str, Any]:
    """What a workdir records of its data."""
    info = prepared.load_info(folder)
    return {
        "prepared": folder,
        "name": info["name"],
        "fingerprint": info["fingerprint"],
        "class_names": info["class_names"],
        "splits": info["splits"],
    }


def loop_data(
    config: Config, folder: str, method: Method, log: Callable[[str], None]
) -> train.Data:
    """What the training loop reads.

    Args:
      config: all of it.
      folder: prepared data.
      method: says how many clips of each video a training batch holds, and of how many partners.
      log: takes one line of text.
    """
    split = prepared.load_split(folder, "train")
    clips = settings.clips(config, method.num_views, method.partners)
    short = short_video_share(split, clips)
    if short:
        log(f"warning: {short:.0%} of the training videos are shorter than a clip and loop")
    validation = None
    if "validation" in prepared.splits(folder):
        held_out = prepared.load_split(folder, "validation")
        held_out_pixels = _pixels(config, held_out)

        def validation():
            clips = settings.evaluation(config).validation_clips
            return _eval_batches(config, held_out, held_out_pixels, clips=clips, crops=1)

    pixels = _pixels(config, split)

    def batches(start: int) -> Iterator[train.Batch]:
        return clip_batches.train_batches(
            split,
            clips,
            batch_size=config["train"]["batch_size"],
            seed=config["train"]["seed"],
            start_step=start,
            threads=config["train"]["threads"] or None,
            pixels=pixels,
            **_process(),
        )

    return train.Data(batches, validation, lambda rows: [str(split.ids[row]) for row in rows])


def eval_batches(
    config: Config, split: prepared.PreparedSplit, *, clips: int, crops: int
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split: `clips` x `crops` of each video, cut as `crop_fraction` says."""
    return _eval_batches(config, split, _pixels(config, split), clips=clips, crops=crops)


def _eval_batches(
    config: Config,
    split: prepared.PreparedSplit,
    pixels: in_memory.Pixels | None,
    *,
    clips: int,
    crops: int,
) -> Iterator[dict[str, np.ndarray]]:
    return clip_batches.eval_batches(
        split,
        frames=config["clips"]["frames"],
        stride=config["clips"]["stride"],
        clips=clips,
        crops=crops,
        fraction=settings.crop_fraction(config),
        canvas=config["data"]["frame_size"],
        batch_size=parallel.divisible(settings.evaluation(config).batch_size),
        threads=config["train"]["threads"] or None,
        pixels=pixels,
        **_process(),
    )


def _pixels(config: Config, split: prepared.PreparedSplit) -> in_memory.Pixels | None:
    """The split's frames, if the config holds them in memory."""
    threads = config["train"]["threads"] or None
    return in_memory.load(split, threads) if config["data"].get("in_memory") else None


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
