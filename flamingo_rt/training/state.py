"""The state of an unfinished run, from which it goes on exactly: a folder beside the output.

    OUT.training/run.json               step, options, identity of model and data, counts of damaged samples
    OUT.training/shard-*.safetensors    trained weights and both moments of AdamW; a file for each rank

`torch.distributed.checkpoint` writes and reads the tensors, so that a run goes on with another number of ranks; its
safetensors form holds no pickle. Frozen weights are not in it: they are read again from where they came, and compared
by their hash. A batch is a function of the step, so nothing else is needed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.files import check_space, new_directory, path_beside
from flamingo_rt.json_files import read_json
from flamingo_rt.printable import printable
from flamingo_rt.training.sharding import World, local

RUN = "run.json"
FORMAT = 3  # 2 did not hold what the files of the data are known by
MOMENTS = ("exp_avg", "exp_avg_sq")
START_ANEW = "delete it to train from the start"
# Options that change how a run is computed, and nothing of its result.
FREE_OPTIONS = ("workers", "accumulate", "save_seconds", "sample_steps", "checkpoint_activations", "compile")
# Options that change the result, and with which a run is mended that came to no number, or to too much damaged data.
MENDING_OPTIONS = ("learning_rate", "gradient_clip", "max_damaged")
# Keys of the identity that runs which began earlier do not have, and the value that they ran with.
SINCE: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("trained", "new_tokens"), "both"), (("model", "cross_attention", "first"), 0),
)
_SHARDING = "DCP_SHARDING_INFO"  # metadata of torch.distributed.checkpoint: where a file's tensors begin in the whole


@dataclass
class RunPosition:
    """The position of a run: steps done, samples read and damaged ones among them, and the number (inode) of the folder
    that its result will replace, 0 for none."""

    step: int = 0
    read: int = 0
    damaged: int = 0
    replaced: int = 0


def state_path(out: Path) -> Path:
    """Folder of the state of an unfinished run, beside the output ``out``."""
    return path_beside(out, ".training")


def has_state(path: Path) -> bool:
    """Whether anything of a run's state is at ``path``: an empty folder is none, nor are hidden files alone."""
    return path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir()))


def folder_number(path: Path) -> int:
    """The number by which the file system knows a folder, 0 where there is none. A result is put in its place by a
    rename, so another number is there afterwards."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def is_written(out: Path) -> bool:
    """Whether a run wrote ``out`` and was killed before it removed its state: that is the one of its last step, and
    another folder is at ``out`` than was when it was saved."""
    try:
        stored = read_json(state_path(out) / RUN)
        ended = stored["step"] == stored["identity"]["options"]["steps"]
        saved = (state_path(out) / RUN).stat().st_mtime_ns
        # Copies have numbers of their own: what is older than the state is not its result.
        return bool(ended and folder_number(out) not in (0, stored["replaced"])
                    and min((file.stat().st_mtime_ns for file in out.iterdir()), default=0) >= saved)
    except (DataError, OSError, KeyError, TypeError):
        return False


def saved_step(path: Path) -> int | None:
    """The step of the state at ``path``, None without one that can be read."""
    try:
        return read_json(path / RUN)["step"]
    except (DataError, KeyError, TypeError):
        return None


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: RunPosition, identity: Mapping[str, Any],
    world: World,
) -> None:
    """Replace the state; every rank calls this. Raises `DataError` for a full disk: the old state stays."""
    tensors = _tensors(model, optimizer)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with ExitStack() as stack:
        folder = world.from_first(lambda: _open_folder(stack, path, size))
        error = None
        try:
            with _quiet():
                dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
                         no_dist=world.size == 1)
        except (CheckpointException, OSError) as failure:
            error = _system_error(failure)
        failed = next((found for found in world.gathered(error) if found is not None), None)
        if failed is not None:
            if world.is_first:
                raise failed  # `new_directory` explains it and removes the folder
            raise DataError(f"writing {path} failed on the first rank; nothing was changed")
        if world.is_first:
            text = json.dumps({"format": FORMAT, **asdict(position), "identity": identity}, indent=1)
            (folder / RUN).write_text(text + "\n", encoding="utf-8")


def _open_folder(stack: ExitStack, path: Path, size: int) -> Path:
    check_space(path, size)
    return stack.enter_context(new_directory(path, overwrite=True))


def _system_error(failure: BaseException) -> OSError:
    """The operating system's error behind a failure of torch.distributed.checkpoint."""
    found = [failure, *getattr(failure, "failures", {}).values()]
    for error in (entry[0] if isinstance(entry, tuple) else entry for entry in found):
        while error is not None:
            if isinstance(error, OSError):
                return error
            error = error.__cause__ or error.__context__
    return OSError(str(failure))


def remove_state(path: Path) -> None:
    """Remove the state of a run that is finished; anything else in its folder stays. What says that it is finished is
    removed last."""
    for file in (*path.glob("shard-*.safetensors"), path / RUN):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any], world: World
) -> RunPosition:
    """Put a state's weights and moments into ``model`` and ``optimizer``; every rank calls this.

    Raises `DataError` for a damaged state, with the tensor's name, `UsageError` when it is of a run with other options,
    another model or other data: what differs is named.
    """
    position = read_position(path, identity)
    tensors = _tensors(model, optimizer)
    world.from_first(lambda: _check_files(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    try:
        with _quiet():
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world.size == 1)
    except (CheckpointException, SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot resume from {path}: {' '.join(str(error).split())[:200]}; {START_ANEW}") from error
    for name, tensor in tensors.items():
        values = local(tensor)
        sound = bool(values.isfinite().all()) and not (name.startswith("exp_avg_sq.") and bool((values < 0).any()))
        if any(not entry for entry in world.gathered(sound)):
            raise DataError(f"cannot resume from {path}: tensor {name} holds numbers that no run has; {START_ANEW}")
    for parameter in trained_parameters(model).values():
        optimizer.state[parameter]["step"] = torch.tensor(float(position.step))
    return position


def read_position(path: Path, identity: Mapping[str, Any]) -> RunPosition:
    """The position that a state holds. Raises as `load_state`."""
    stored = read_json(path / RUN)
    if isinstance(stored, dict) and stored.get("format") in range(1, FORMAT):
        raise DataError(f"{path} is the state of an earlier version, which did not keep what its data's files hold, so "
                        f"that other data would not be noticed: end the run with that version, or {START_ANEW}")
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise DataError(f"{path / RUN} is not the state of a run that this version can go on with; {START_ANEW}")
    counts: dict[str, int] = {}
    for name in (entry.name for entry in fields(RunPosition)):
        value = stored.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
            raise DataError(f"{path / RUN}: {name} is {value!r}, not a count; {START_ANEW}")
        counts[name] = value
    different = _identity_differences(_with_defaults(stored.get("identity")), json.loads(json.dumps(identity)))
    if different:
        listed = "; ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise UsageError(f"{path} is of another run: {listed}. Give what it was started with, or delete {path} to "
                         "train from the start")
    return RunPosition(**counts)


def _with_defaults(identity: Any) -> Any:
    """An identity with the keys of `SINCE` where a run that began earlier had none."""
    for (*parents, key), value in SINCE:
        place = identity
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(key, value)
    return identity


def _identity_differences(stored: Any, now: Any) -> list[str]:
    """Differences between the identities of two runs, each dataset's by its name; options that may change are not
    looked at."""
    found: list[str] = []
    if isinstance(stored, dict) and isinstance(now, dict):
        stored, now = dict(stored), dict(now)
        for each in (stored, now):
            if isinstance(each.get("options"), dict):
                each["options"] = {name: value for name, value in each["options"].items()
                                   if name not in (*FREE_OPTIONS, *MENDING_OPTIONS)}
        if isinstance(stored.get("datasets"), dict) and isinstance(now.get("datasets"), dict):
            before, after = stored.pop("datasets"), now.pop("datasets")
            for name in sorted(set(before) | set(after)):
                if name not in before or name not in after:
                    found.append(f"dataset {name} is {'missing' if name in before else 'new'}")
                else:
                    found += (f"dataset {name}: {text}" for text in _data_differences(before[name], after[name]))
    return [*_differences(stored, now, ""), *found]


def _data_differences(stored: Any, now: Any) -> Iterator[str]:
    """Differences between the identities of a dataset; its files by their names."""
    if not isinstance(stored, dict) or not isinstance(now, dict):
        yield from _differences(stored, now, "")
        return
    stored, now = dict(stored), dict(now)
    files = list(_file_differences(stored.pop("files", None) or [], now.pop("files", None) or []))
    before, after = (str(each.get("data")).rpartition(", ")[0] for each in (stored, now))
    if files and before == after:  # all but a digest, which says less than the files
        del stored["data"], now["data"]
    yield from _differences(stored, now, "")
    yield from files


def _file_differences(stored: Any, now: list[list[str]]) -> Iterator[str]:
    """Differences between the files of a dataset, each its name and its fingerprint."""
    try:
        before, after = [(str(name), text) for name, text in stored], [(name, text) for name, text in now]
    except (TypeError, ValueError):
        yield "files are none"
        return
    names, new = {name for name, _ in before}, {name for name, _ in after}
    yield from (f"file {printable(name)} is missing" for name in sorted(names - new))
    yield from (f"file {printable(name)} is new" for name in sorted(new - names))
    if [name for name, _ in before] == [name for name, _ in after]:
        yield from (f"file {printable(one[0])} has other content" for one, other in zip(before, after, strict=True)
                    if one != other)
    elif names == new:
        yield "the files are in another order"


def _differences(stored: Any, now: Any, where: str) -> Iterator[str]:
    """Differences between two JSON values, as ``key was A, is B``."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for key in sorted(set(stored) | set(now)):
            yield from _differences(stored.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        for index, (one, other) in enumerate(zip(stored, now, strict=True)):
            yield from _differences(one, other, f"{where}[{index}]")
    elif stored != now:
        yield f"{where or 'identity'} was {repr(stored)[:60]}, is {repr(now)[:60]}"


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the state, in place: weights, and moments, which are made where there are none yet."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained_parameters(model).items():
        moments = optimizer.state[parameter]
        if "step" not in moments:
            moments["step"] = torch.tensor(0.0)
        for moment in MOMENTS:
            if moment not in moments:
                moments[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        tensors[f"weight.{name}"] = parameter.data
        tensors |= {f"{moment}.{name}": moments[moment] for moment in MOMENTS}
    return tensors


def _check_files(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `DataError` that names the tensor unless the files hold each tensor of ``expected`` whole, in float32."""
    pieces: dict[str, list[tuple[int, int]]] = {name: [] for name in expected}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                places = json.loads((opened.metadata() or {}).get(_SHARDING, "{}"))
                found = {
                    name: (opened.get_slice(name).get_shape(), opened.get_slice(name).get_dtype(),
                           places[name]["saved_offsets"])
                    for name in opened.keys()  # noqa: SIM118 (no mapping)
                }
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"cannot resume from {path}: {file.name} is damaged ({reason}); {START_ANEW}") from error
        for name, (shape, dtype, offsets) in found.items():
            _check_piece(path, name, expected.get(name), shape, dtype, offsets)
            pieces[name].append((offsets[0], shape[0]) if shape else (0, 1))
    for name, wanted in expected.items():
        end = 0
        for begin, size in sorted(pieces[name]):
            end = end + size if begin == end else -1
        if end != (wanted[0] if wanted else 1):
            raise DataError(f"cannot resume from {path}: tensor {name} is missing or not whole; {START_ANEW}")


def _check_piece(
    path: Path, name: str, expected: tuple[int, ...] | None, shape: list[int], dtype: str, offsets: Any
) -> None:
    if expected is None:
        raise DataError(f"cannot resume from {path}: tensor {name} is no part of this model; {START_ANEW}")
    fits = isinstance(offsets, list) and len(offsets) == len(shape) == len(expected) and all(
        isinstance(begin, int) and begin >= 0 and begin + size <= wanted and (axis == 0 or size == wanted)
        for axis, (begin, size, wanted) in enumerate(zip(offsets, shape, expected, strict=True))
    )
    if not fits or dtype != "F32":
        raise DataError(
            f"cannot resume from {path}: tensor {name} is {dtype} {list(shape)} at {str(offsets)[:60]}, the run has "
            f"F32 {list(expected)}; {START_ANEW}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's notice that one process saves for itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
