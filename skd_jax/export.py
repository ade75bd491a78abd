"""A trained classifier in the formats of others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from skd_jax import classifier, models, workdir
from skd_jax.models import pretrained
from skd_jax.names import look_up

Log = Callable[[str], None]

# Built by name in torchvision.models.video; r3d_10, r3d_34 and r2plus1d_34 share its keys alone.
_TORCHVISIONS = frozenset({"r3d_18", "mc3_18", "r2plus1d_18", "s3d"})


def run_export(folder: Path, form: str, log: Log = print) -> Path:
    """Writes export/MODEL.* in a workdir, class names and preprocessing beside it as MODEL.json.

    Args:
      folder: a trained workdir.
      form: one of `FORMATS`.
      log: takes one line of text.

    Returns:
      The file.

    Raises:
      UserError: no such format, nothing was trained there, or the format cannot hold the model.
    """
    write = look_up("export format", form, FORMATS)
    trained = classifier.load(folder, log)
    name = trained.config["model"]["name"]
    out = folder / "export"
    out.mkdir(exist_ok=True)
    path, how = write(trained, out / name)
    description = out / f"{name}.json"
    workdir.write_json(description, {"file": path.name, "format": form, **describe(trained)})
    log(f"{path}: {trained.selection}")
    for line in how:
        log(line)
    log(f"{description}: class names in the order of the logits, and what clips go through before")
    return path


def describe(trained: classifier.Trained) -> dict[str, Any]:
    """What must be known to use the weights elsewhere."""
    config = trained.config
    data, clips, augment = config["data"], config["clips"], config["augment"]
    short, width = data["frame_size"], data.get("frame_width", 0)
    return {
        "model": config["model"]["name"],
        "width": config["model"]["width"],
        "class_names": list(trained.class_names),
        "preprocessing": {
            "resize": [short, width] if width else short,  # (height, width), or the short side
            "antialias": data.get("antialias", True),
            "interpolation": "bilinear",
            "center_crop": augment["crop"],
            "mean": list(augment["mean"]),
            "std": list(augment["std"]),
            "frames": clips["frames"],
            "stride": clips["stride"],
            "max_fps": data["max_fps"] or None,
        },
        "step": trained.step,
        "weights": "raw" if trained.raw_variables is None else "moving average",
    }


def _torch(trained: classifier.Trained, stem: Path) -> tuple[Path, list[str]]:
    options = dict(trained.config["model"])
    name, _ = options.pop("name"), options.pop("dtype")
    variables = {collection: trees["model"] for collection, trees in trained.variables.items()}
    state_dict = pretrained.to_torch(name, variables, **options)
    path = stem.with_name(f"{stem.name}.pth")
    pretrained.save_torch(path, state_dict)
    built = construction(name, options["width"], len(trained.class_names))
    how = [f"{len(state_dict)} arrays. In PyTorch:", f"  {built}"]
    how.append(f'  model.load_state_dict(torch.load("{path}", weights_only=True))')
    how.append("  model.eval()  # clips (B, 3, T, H, W)")
    return path, how


def construction(name: str, width: float, num_classes: int) -> str:
    """A line of Python that makes the PyTorch model which loads an exported state dict."""
    if name in _TORCHVISIONS and width == 1:
        return f"model = torchvision.models.video.{name}(num_classes={num_classes})"
    narrowed = f", width {width:g}" if width != 1 else ""
    keys = f"{name} with the keys of {models.describe(name).torch.source}"
    return f"model = ...  # {keys}: {num_classes} classes{narrowed}"


# Each writes a file with the given stem and returns it with lines on how to use it.
FORMATS: dict[str, Callable[[classifier.Trained, Path], tuple[Path, list[str]]]] = {
    "torch": _torch,
}
