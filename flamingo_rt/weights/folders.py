"""The weight file of a model's folder, or the index of several."""

from __future__ import annotations

from pathlib import Path

from flamingo_rt.errors import DataError
from flamingo_rt.json_files import MOST_BYTES, parse_json

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".index.json"
# Tried in this order: safetensors first, an index before the single file of its kind.
USUAL = (
    f"model.safetensors{INDEX}",
    "model.safetensors",
    "open_clip_model.safetensors",
    f"pytorch_model.bin{INDEX}",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


def weights_in(folder: Path) -> Path:
    """The weight file of a folder, or the index of several. Raises `DataError` when there is none, or no single one."""
    usual = [folder / name for name in USUAL if (folder / name).is_file()]
    if usual:
        return usual[0]
    entries = sorted(entry for entry in folder.iterdir() if entry.is_file())
    indexes = [entry for entry in entries if entry.name.endswith(INDEX) and _has_weight_map(entry)]
    files = [entry for entry in entries if entry.suffix in SUFFIXES]
    safetensors = [entry for entry in files if entry.suffix == ".safetensors"]
    for candidates in (indexes, safetensors, files):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            listed = ", ".join(entry.name for entry in candidates[:5]) + (" and more" if len(candidates) > 5 else "")
            raise DataError(f"{folder} has several weight files and no index of them: give one of {listed}")
    raise DataError(
        f"{folder} has no weights: looked for {', '.join(USUAL)}, another *{INDEX}, and files ending in "
        f"{', '.join(SUFFIXES)}"
    )


def read_index(index: Path) -> dict[Path, list[str]]:
    """The tensors' names that an index promises, by file.

    Raises `DataError` when it is damaged or names files outside its folder, `OSError` when it can't be read.
    """
    names = _weight_map(index)
    if not names or not all(isinstance(shard, str) for shard in names.values()):
        raise DataError(f"{index} is not an index of weights: it needs a weight_map from tensors to files")
    promised: dict[Path, list[str]] = {}
    for name, shard in names.items():
        if not shard or Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise DataError(f"{index} names the file {shard!r}, outside its folder: correct it, or download it again")
        promised.setdefault(index.parent / shard, []).append(name)
    return promised


def _has_weight_map(index: Path) -> bool:
    try:
        return bool(_weight_map(index))
    except DataError:
        return False


def _weight_map(index: Path) -> dict[str, str] | None:
    try:
        with index.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES / 1e6:g} MB")
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"cannot read {index}: not JSON ({error}); copy or download it again") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    return names if isinstance(names, dict) else None
