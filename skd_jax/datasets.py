"""From a config to prepared data, and from prepared data to batches for the loop."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from skd_jax import parallel, settings, train
from skd_jax.data import index as index_lib
from skd_jax.data import pipeline, prepare, prepared, synthetic
from skd_jax.data.clips import ClipSettings, short_video_share
from skd_jax.errors import UserError

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
            prepared.load_info(data["prepared"])
            return os.fspath(epath.Path(data["prepared"]))
        raise UserError(
            "config.data.root is not set; add --config.data.root=FOLDER, where the videos are "
            "(or --config.data.prepared=FOLDER, an already prepared data set)"
        )
    if "synthetic" in data and jax.process_index() == 0:
        synthetic.write_dataset(
            Path(data["root"]),
            settings.dataclass_from(
                synthetic.SyntheticSettings, data["synthetic"], "data.synthetic"
            ),
        )
    parallel.barrier("videos written")
    index = index_lib.build_index(
        data["name"],
        data["root"],
        annotations=data["annotations"] or None,
        split=data["split"],
        classes=tuple(name.strip() for name in data["classes"].split(",") if name.strip()),
        validation_fraction=data["validation_fraction"],
        test_fraction=data["test_fraction"],
        seed=data["seed"],
        groups_csv=data["groups_csv"] or None,
    )
    storage = prepare.PrepareSettings(
        frame_size=data["frame_size"],
        jpeg_quality=data["jpeg_quality"],
        max_fps=data["max_fps"] or None,
        workers=data["workers"],
    )
    name = f"{data['name']}-{prepare.fingerprint(index, storage)[:12]}"
    folder = epath.Path(data["prepared"] or Path("prepared", name).absolute())
    complete = True
    if jax.process_index() == 0:
        for note in index.notes:
            log(f"note: {note}")
        complete = prepare.prepare(index, folder, storage, shards=data["shards"] or None, log=log)
    parallel.barrier("data prepared")
    return os.fspath(folder) if complete else None


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


def loop_data(config: Config, folder: str, views: int, log: Callable[[str], None]) -> train.Data:
    """What the training loop reads.

    Args:
      config: all of it.
      folder: prepared data.
      views: clips of each video in a training batch.
      log: takes one line of text.
    """
    split = prepared.load_split(folder, "train")
    clips = settings.dataclass_from(
        ClipSettings, config["clips"], "clips", views=views, canvas=config["data"]["frame_size"]
    )
    short = short_video_share(split, clips)
    if short:
        log(f"note: {short:.0%} of the training videos are shorter than a clip and loop")
    validation = None
    if "validation" in prepared.splits(folder):
        held_out = prepared.load_split(folder, "validation")

        def validation():
            return eval_batches(config, held_out, clips=config["eval"]["validation_clips"], crops=1)

    def batches(start: int) -> Iterator[train.Batch]:
        return pipeline.train_batches(
            split,
            clips,
            batch_size=config["train"]["batch_size"],
            seed=config["train"]["seed"],
            start_step=start,
            threads=config["train"]["threads"] or None,
            **_process(),
        )

    return train.Data(batches, validation, lambda rows: [str(split.ids[row]) for row in rows])


def eval_batches(
    config: Config, split: prepared.PreparedSplit, *, clips: int, crops: int
) -> Iterator[dict[str, np.ndarray]]:
    """One pass over a split: `clips` x `crops` of each video, cut as `crop_fraction` says."""
    return pipeline.eval_batches(
        split,
        frames=config["clips"]["frames"],
        stride=config["clips"]["stride"],
        clips=clips,
        crops=crops,
        fraction=crop_fraction(config),
        canvas=config["data"]["frame_size"],
        batch_size=config["eval"]["batch_size"],
        threads=config["train"]["threads"] or None,
        **_process(),
    )


def crop_fraction(config: Config) -> float:
    """Side of a test crop as a share of the stored short side: 112 pixels of 128, say."""
    crop, stored = config["augment"]["crop"], config["data"]["frame_size"]
    if crop > stored:
        raise UserError(
            f"config.augment.crop={crop} is larger than config.data.frame_size={stored}; "
            f"frames of about {round(crop * 8 / 7)} leave room for cropping"
        )
    return crop / stored


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
