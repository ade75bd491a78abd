"""A workdir: what one training run leaves behind, and all that later modes need.

config.json      the resolved config
data.json        class names, fingerprint and place of the prepared data, source of each split
checkpoints/     the last states and the best
stages/          a folder like this one for each earlier stage of a method that has some
metrics.jsonl, tensorboard/, results.json, *.png
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skd_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG, DATA, CHECKPOINTS = "config.json", "data.json", "checkpoints"

# Where things lie and how they are run; a run may move to another machine with these changed.
_MOVABLE = (
    "data.root",
    "data.annotations",
    "data.groups_csv",
    "data.prepared",
    "data.shards",
    "data.workers",
    "eval.batch_size",
    "init_from",  # its content counts, by init_from_sha256
    "method.teacher",  # likewise, by teacher.sha256
    "model.remat",  # memory for time: the same gradients, up to rounding
    "train.log_every",
    "train.replicas",
    "train.threads",
)

# Keys that came later, with what older runs did: these go on too.
_LATER = {
    "data.antialias": True,
    "data.frame_width": 0,
    "data.in_memory": False,
    "finetune.freeze": "",
    "finetune.freeze_batch_norm": False,
    "finetune.lr_groups": "",
    "method.past_teacher": 0.0,
}


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from training in it meanwhile.

    The lock ends with the process, however that ends. Where there are none (Windows, some network
    disks), two trainings in one folder are not noticed.

    Raises:
      UserError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        if fcntl is not None:
            folder = os.open(workdir, os.O_RDONLY)
            opened.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is training in {workdir}; wait for it, stop it, or take another "
                    "--workdir"
                ) from None
            except OSError:  # a disk without locks
                pass
        yield


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Stores the config in a workdir, or checks that what was trained there had the same one.

    A config is binding once there is a checkpoint: a command that failed before may be corrected.

    Raises:
      UserError: it was made with another config; the message lists what differs.
    """
    config = json.loads(json.dumps(config))
    if (workdir / CONFIG).is_file() and has_checkpoint(workdir):
        there = read_config(workdir)
        stored, wanted = _in_full(there), _in_full(config)
        changed = [
            f"  {key}: {_shown(stored, key)} there, {_shown(wanted, key)} now"
            for key in sorted(_LATER.keys() | flat(there).keys() | flat(config).keys())
            if stored.get(key) != wanted.get(key) and key not in _MOVABLE
        ]
        if changed:
            raise UserError(
                f"{workdir} was made with another config; take another --workdir, or set back:\n"
                + "\n".join(changed)
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, config)


def _in_full(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, with what holds where the config is silent, such as the model's defaults."""
    from skd_jax import models  # JAX, which the processes that prepare videos do without

    name = config.get("model", {}).get("name")
    own = models.defaults(name) if name in models.names() else {}
    own = json.loads(json.dumps(own, default=str))  # tuples are lists there
    return _LATER | flat({"model": own}) | flat(config)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a training run left a complete checkpoint here."""
    return bool(checkpoint_steps(workdir))


def checkpoint_steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints here, ascending."""
    folder = workdir / CHECKPOINTS
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(entry.name) for entry in entries if entry.name.isdigit())


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def read_config(workdir: Path) -> dict[str, Any]:
    """The config of a workdir.

    Raises:
      UserError: there is no run in it.
    """
    return _read(workdir, CONFIG)


def read_data(workdir: Path) -> dict[str, Any]:
    """What a workdir says of its data: prepared, fingerprint, class_names, splits.

    Raises:
      UserError: there is no run in it.
    """
    return _read(workdir, DATA)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON beside the path, then renames."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[prefix + key] = value
    return items


def _read(workdir: Path, name: str) -> dict[str, Any]:
    path = workdir / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{workdir} holds no trained run ({name} is absent); train first, or check --workdir"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); run the training command again") from None
