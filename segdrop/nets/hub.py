"""Weight files of the Hugging Face Hub, downloaded once and kept in its cache."""

import json
import re
from pathlib import Path

from ..errors import InputError, first_line
from ..files import file_digest

# torchvision's own first ImageNet weights, as timm publishes them in safetensors.
IMAGENET = {f"torchvision_resnet{depth}": f"timm/resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)}
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def is_repository(name: str) -> bool:
    """Whether a name can be that of a repository, `owner/name`, with `@revision` or without.

    Example:
        >>> is_repository("timm/resnet34.a1_in1k"), is_repository("weights/resnet34.safetensors")
        (True, False)
    """
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name)) and not re.search(
        r"\.(safetensors|pth?|h5|keras)$", name
    )


def hub_file(name: str) -> Path:
    """Path of a repository's `model.safetensors`, with its `config.json` beside it.

    Args:
        name: `owner/name`, or `owner/name@revision`; the newest revision by default. Which one it is stands in the
            path, see `revision_of`. The environment variable HF_ENDPOINT names another server, HF_HOME the cache.

    Raises:
        InputError: there is no such repository, it cannot be had, or what was had is not what it is called by.
    """
    from huggingface_hub import hf_hub_download  # imported late: it takes a third of a second
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    repository, _, revision = name.partition("@")
    try:
        path = Path(hf_hub_download(repository, _WEIGHTS, revision=revision or None))
        hf_hub_download(repository, _CONFIG, revision=revision_of(path))
        _check(path, revision)
    except InputError:
        raise
    except Exception as error:  # of huggingface_hub, of the client that it uses, of the disk
        reason = first_line(error).rstrip(".")
        raise InputError(
            f"The weights {name} are not cached and could not be had from the Hugging Face Hub ({reason}); give a "
            "local file, or use encoder_weights=None (--encoder-weights none) for random initialisation."
        ) from error
    return path


def _check(path: Path, revision: str) -> None:
    """Raise InputError where a file of the cache is not of the commit asked for, or not what its hash says."""
    if re.fullmatch(r"[0-9a-f]{40}", revision) and revision_of(path) != revision:
        raise InputError(f"{path} is of the commit {revision_of(path)} and not of {revision}; delete it.")
    stored = path.resolve().name  # the cache calls large files by their SHA-256
    if re.fullmatch(r"[0-9a-f]{64}", stored) and file_digest(path) != stored:
        raise InputError(f"{path} is damaged: its SHA-256 is not {stored}; delete {path.resolve()}.")


def revision_of(path: Path) -> str | None:
    """The commit that a file of the Hub's cache belongs to; None for other files.

    Example:
        >>> from pathlib import Path
        >>> revision_of(Path("models--timm--resnet18.tv_in1k/snapshots/0a1b2c/model.safetensors"))
        '0a1b2c'
    """
    return path.parent.name if path.parent.parent.name == "snapshots" else None


def input_statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation, in 0..1, of the images that a file's weights were trained on, as the `config.json` beside it
    says; None where there is none that does."""
    try:
        config = json.loads((path.parent / _CONFIG).read_text(encoding="utf-8"))
        config = config.get("pretrained_cfg", config)
        mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (mean, std) if len(mean) == len(std) == 3 and min(std) > 0 else None
