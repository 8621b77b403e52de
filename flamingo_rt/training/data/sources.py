"""From what a user names as data to its samples: the kind of a source is found out from what is there."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.printable import printable
from flamingo_rt.training.data.folder_source import CaptionLines, ImageFolder, holds_class_folders
from flamingo_rt.training.data.json_lines import JsonLines
from flamingo_rt.training.data.pages import PageLines
from flamingo_rt.training.data.samples import SampleSource
from flamingo_rt.training.data.shards import expand_braces, open_shards
from flamingo_rt.training.data.text_source import TextFiles, TextPieces
from flamingo_rt.training.options import SCENES, DataKind, DataOptions

# A text in JSON cannot hold a quote as it is, so these are keys, if not spelt with escapes.
_KEYS = re.compile(rb'"(image|video|text|text_list|texts)"\s*:')
MOST_PARSED = 100_000  # bytes of a line that is parsed to find its kind
UNKNOWN = "unknown"
REFERENCES = "references"  # of an evaluation: several captions of a picture or a clip
# Files that say what else in their folder belongs to the data, and what a folder can hold, each with its kinds.
LISTED = ("captions.jsonl", "pages.jsonl")
SHARDS, TEXTS, CLASSES = ".tar shards", ".txt and .jsonl files", "folders of pictures"
HELD: dict[str, tuple[DataKind, ...]] = {
    "captions.jsonl": ("pairs", "videos", "text"), "pages.jsonl": ("pages",),
    SHARDS: ("pairs", "videos", "pages", "text"), TEXTS: ("text",), CLASSES: ("pairs", "tasks"),
}


def check_names(data: Sequence[DataOptions]) -> None:
    """Raise `UsageError` when two datasets of a mixture have one name: logs and a run's state know them by it."""
    names = [entry.label for entry in data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two datasets are called {twice!r}: give each a name (--data SOURCE,name=…)")


def open_source(options: DataOptions) -> SampleSource:
    """Open the source of ``options`` and find out its kind.

    - A ``.jsonl`` file, or a folder with a ``captions.jsonl`` or a ``pages.jsonl``: captions and questions of pictures
      or of clips (`folder_source.py`), interleaved pages (`pages.py`), or texts, by the keys of its lines.
    - A folder with a folder of pictures for each class, which is also what tasks are made of (`class_tasks.py`); with
      the kind ``features`` their features (`given_features.py`).
    - A ``.txt`` file, or a folder of ``.txt`` and ``.jsonl`` files with texts (`text_source.py`).
    - A ``.tar`` file, a folder of them, or a brace pattern, ``pairs-{0000..0099}.tar`` or ``{a,b}.tar``
      (`shards.py`).

    Of a folder that holds several of these, ``options.kind`` says which is meant; names that begin with a dot are not
    looked at. Raises `DataError` when there is no data, files are missing, or what is there is of several kinds or of
    another kind than ``options.kind``; `UsageError` for drawn scenes, which are no files.
    """
    if options.source == SCENES or options.kind == "scenes":
        raise UsageError("drawn scenes are no files: flamingo-rt data make-scenes writes some")
    source = _open(options)
    if options.kind == "features":
        if not (isinstance(source, ImageFolder) and source.holds == "features" and len(source)):
            raise DataError(f"{options.source} holds no features: give a folder with a folder of .npy files for each "
                            "class")
        return source
    if not len(source):
        raise DataError(f"{options.source} holds no sample")
    if options.kind == "tasks":
        if not isinstance(source, ImageFolder):
            raise DataError(f"{options.source} holds {source.kind}, and tasks are made of a folder with a folder of "
                            "pictures for each class, or drawn (the source scenes): give one of these")
    elif options.kind not in ("auto", source.kind):
        raise DataError(f"{options.source} holds {source.kind}, not {options.kind}: leave kind out, or give another "
                        "source")
    return source


def _open(options: DataOptions) -> SampleSource:
    path = Path(options.source)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise DataError(f"cannot read {options.source[:60]}…: {error.strerror}; give another source") from error
    if is_folder and options.kind == "features":
        return ImageFolder.open(path, options.template, "features")
    if is_folder:
        return _open_folder(path, options)
    if path.suffix.lower() == ".tar":
        return open_shards([path] if path.exists() else expand_braces(options.source))
    if path.suffix.lower() == ".jsonl":
        return _open_lines(path)
    if path.suffix.lower() == ".txt":
        return TextFiles.of([TextPieces.open(path)])
    if not path.exists():
        raise DataError(f"{options.source} does not exist: give a folder, a .jsonl or .txt file, or .tar shards")
    raise DataError(f"{options.source} is none of a folder, a .jsonl file, a .txt file and a .tar shard")


def _open_folder(folder: Path, options: DataOptions) -> SampleSource:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; give this user read access to it") from error
    listed = [name for name in LISTED if name in names]
    shards = [folder / name for name in names if name.lower().endswith(".tar")]
    texts = [folder / name for name in names if name.lower().endswith((".txt", ".jsonl")) and name not in LISTED]
    glance = bool(shards or (texts and options.kind not in HELD[CLASSES]))
    classes = (not listed or options.kind == "tasks") and holds_class_folders(folder, glance)
    there = {**dict.fromkeys(listed, True), SHARDS: bool(shards), TEXTS: bool(texts), CLASSES: classes}
    held = _of_kind({name: HELD[name] for name in HELD if there.get(name)}, options.kind)
    first = [name for name in held if name in LISTED]
    if len(first) == 1:
        lines = _open_lines(folder / first[0])
        others = [name for name in held if name not in LISTED and options.kind in HELD[name]]
        if not others or lines.kind == options.kind:
            return lines
        first, held = [], others
    if len(held) > 1:
        raise DataError(f"{folder} holds {_listed(first or held)}: give one of them, or say with kind which it is")
    if held == [SHARDS]:
        return open_shards(shards)
    if held == [TEXTS]:
        return _open_texts(texts)
    if held == [CLASSES]:
        return ImageFolder.open(folder, options.template)
    raise DataError(f"{folder} holds no data: no captions.jsonl, pages.jsonl, .tar shards, .txt or .jsonl files, and "
                    "no folders of pictures")


def _of_kind(found: Mapping[str, tuple[DataKind, ...]], kind: DataKind) -> list[str]:
    """The names among ``found`` that can be of this kind; all where none can."""
    return [name for name, kinds in found.items() if kind in kinds] or list(found)


def _open_lines(path: Path) -> SampleSource:
    lines = JsonLines.open(path, line_kind)
    kind = _only_kind(path, lines.counts)
    if kind == "text":
        return TextFiles.of([lines])
    if kind == "pages":
        return PageLines(lines, path.parent.resolve())
    return CaptionLines(lines, path.parent.resolve(), "pairs" if kind == "pairs" else "videos")


def _open_texts(paths: Iterable[Path]) -> TextFiles:
    files: list[TextPieces | JsonLines] = []
    for path in paths:
        if path.suffix.lower() == ".txt":
            files.append(TextPieces.open(path))
            continue
        lines = JsonLines.open(path, line_kind)
        kind = _only_kind(path, lines.counts)
        if kind != "text":
            raise DataError(f"{path} holds {kind}, and its folder has other files: give the file itself")
        files.append(lines)
    return TextFiles.of(files)


def line_kind(line: bytes) -> str:
    """The kind of sample that a line of a JSONL file is, by the keys of its object, `REFERENCES` or `UNKNOWN`."""
    keys = _keys(line)
    if "texts" in keys and keys & {"image", "video"} and b'"images"' not in line:
        return REFERENCES
    if keys & {"text_list", "texts"}:
        return "pages"
    if "image" in keys:
        return UNKNOWN if "video" in keys else "pairs"
    if "video" in keys:
        return "videos"
    return "text" if "text" in keys else UNKNOWN


def _keys(line: bytes) -> Set[str]:
    """The keys of a line that say what it is. Those of objects inside are told from the line's own by parsing it, which
    is not done for a line that is damaged or has more than `MOST_PARSED` bytes."""
    found = {match[1].decode() for match in _KEYS.finditer(line)}
    if not found or line.count(b"{") == 1 or len(line) > MOST_PARSED:
        return found
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return found
    return found & row.keys() if isinstance(row, dict) else found


def _only_kind(path: Path, counts: Mapping[str, int]) -> str:
    """The kind of all lines whose kind is known."""
    kinds = Counter({kind: count for kind, count in counts.items() if kind != UNKNOWN})
    if kinds[REFERENCES]:
        raise DataError(f'{path}: {kinds[REFERENCES]:,} of its lines give "texts" of one picture or clip, which are '
                        'references of an evaluation. Training takes one "text" a line: give each text a line of its '
                        'own; a page with texts and pictures needs "images"')
    if len(kinds) > 1:
        found = _listed([f"{count:,} of {kind}" for kind, count in sorted(kinds.items())])
        raise DataError(f"the lines of {path} are of several kinds, {found}: put each into a file of its own")
    if not kinds:
        raise DataError(f'{path} has no line with "image", "video", "text", "texts" or "text_list"; the first is to '
                        f"be like {{\"image\": \"a.jpg\", \"text\": \"a cat\"}}")
    return next(iter(kinds))


def _listed(names: Iterable[str]) -> str:
    return " and ".join(printable(name) for name in names)
