"""Drawn scenes as tar shards, in the form in which strangers' data comes: pairs, clips, interleaved pages and texts.

A sample is a function of the seed and its number, so the same options give the same bytes, in shards of any size.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import PIL.Image

from flamingo_rt.config import PromptsConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.files import adding_files, check_space
from flamingo_rt.progress import Progress, silent
from flamingo_rt.training import scenes
from flamingo_rt.training.data.scene_documents import texts_of_scene

MadeKind = Literal["pairs", "videos", "pages", "text"]
Files = dict[str, bytes]  # the files of one sample, by their names in the shard
KINDS: tuple[MadeKind, ...] = get_args(MadeKind)
QUESTIONS: dict[MadeKind, int] = {"pairs": 0, "videos": 0, "pages": 1, "text": 4}  # about a scene, where none is asked
CLIP_FRAMES, FRAME_MILLISECONDS = 8, 1000  # the frames that training reads of a clip, at the one a second that it reads
PAGE_PICTURES = (2, 4)  # the fewest and the most on a page
ORDINALS = ("first", "second", "third", "fourth")
MEASURED = 16  # samples from which the size of all is estimated


@dataclass(frozen=True)
class SceneShards:
    """Samples of ``count`` scenes, or pages or clips of them, with pictures of ``size`` x ``size`` pixels.

    A scene of ``pairs`` is a picture with its caption, and the same picture with each of ``questions`` questions; one
    of ``text`` a document of its caption, questions and answers. Fewer questions are asked of a simple scene.
    Raises `UsageError` for questions about clips.
    """

    kind: MadeKind
    count: int
    seed: int = 0
    split: scenes.Split = "train"
    size: int = 64
    questions: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "videos" and self.questions:
            raise UsageError("no questions are asked about clips: leave --questions out, or choose another --kind")

    def samples(self, index: int) -> Iterator[Files]:
        """The samples of scene ``index``, from 0."""
        key = f"{index:08d}"
        if self.kind == "pairs":
            yield from self._pairs(key, index)
        elif self.kind == "videos":
            clip = scenes.clip(self.seed, index, self.split, self.size, CLIP_FRAMES)
            yield {f"{key}.apng": animated_png(clip.frames), f"{key}.txt": clip.caption.encode()}
        elif self.kind == "pages":
            yield self._page(key, index)
        else:
            texts = texts_of_scene(self.seed, index, PromptsConfig(), self.split, self._most_questions)
            yield {f"{key}.txt": "\n".join(texts).encode()}

    @property
    def _most_questions(self) -> int:
        return QUESTIONS[self.kind] if self.questions is None else self.questions

    def _pairs(self, key: str, index: int) -> Iterator[Files]:
        drawn = scenes.sample(self.seed, index, self.split, self.size)
        picture = png(drawn.image)
        yield {f"{key}.png": picture, f"{key}.txt": drawn.caption.encode()}
        for number, question in enumerate(self._questions(drawn.scene, index), start=1):
            row = {"question": question.text, "answer": question.answer}
            yield {f"{key}-{number}.png": picture, f"{key}-{number}.json": _json(row)}

    def _page(self, key: str, index: int) -> Files:
        """A page in the form of MMC4: some words, then pictures, each before a sentence about it."""
        rng = np.random.default_rng([self.seed, index, 2])
        least, most = PAGE_PICTURES
        count = int(rng.integers(least, most + 1))
        texts, pictures, files = [f"This page has {scenes.NUMBERS[count]} pictures."], [], Files()
        for number in range(count):
            scene_index = index * most + number
            drawn = scenes.sample(self.seed, scene_index, self.split, self.size)
            name = f"{key}.{number}.png"
            files[name] = png(drawn.image)
            pictures.append({"image_name": name, "matched_text_index": len(texts)})
            texts.append(f"The {ORDINALS[number]} picture shows {drawn.caption}.")
            texts += [f"{asked.text} {asked.answer.capitalize()}."
                      for asked in self._questions(drawn.scene, scene_index)]
        return {f"{key}.json": _json({"text_list": texts, "image_info": pictures}), **files}

    def _questions(self, scene: scenes.Scene, index: int) -> list[scenes.Question]:
        return scenes.questions(scene, np.random.default_rng([self.seed, index, 3]), self._most_questions)


def make_scenes(
    made: SceneShards, out: Path, per_shard: int = 1000, overwrite: bool = False, progress: Progress = silent
) -> list[Path]:
    """Write ``out``/KIND-0000.tar and so on, of ``per_shard`` samples each; gives their paths.

    All shards are there at the end, or none. Raises `UsageError` when ``out`` holds shards of this kind and may not
    ``overwrite`` them, `DataError` when they cannot be written or the disk has no room for them.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a folder: choose another --out")
    old = _shards_of(out, made.kind)
    if old and not overwrite:
        raise UsageError(f"{out} already holds {len(old)} shards of {made.kind}, such as {old[0].name}: choose another "
                         "--out, or replace them with --overwrite")
    check_space(out / "shard", estimated_bytes(made))
    written: list[Path] = []
    with adding_files(out) as beside, progress(f"{made.count:,} scenes as {made.kind}", made.count) as advance:

        def samples() -> Iterator[Files]:
            for index in range(made.count):
                yield from made.samples(index)
                advance(1)

        remaining = samples()
        for first in remaining:
            written.append(beside / f"{made.kind}-{len(written):04d}.tar")
            _write_shard(written[-1], itertools.chain([first], itertools.islice(remaining, per_shard - 1)))
    kept = {path.name for path in written}
    for path in old:
        if path.name not in kept:
            path.unlink(missing_ok=True)
    return [out / path.name for path in written]


def estimated_bytes(made: SceneShards) -> int:
    """About how many bytes all shards take, from the first samples."""
    measured = min(made.count, MEASURED)
    found = sum(
        tarfile.BLOCKSIZE * (1 + -(-len(content) // tarfile.BLOCKSIZE))
        for index in range(measured) for files in made.samples(index) for content in files.values()
    )
    return found * made.count // measured


def _shards_of(folder: Path, kind: MadeKind) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(rf"{kind}-\d{{4,}}\.tar", path.name))


def _write_shard(path: Path, samples: Iterable[Files]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for name, content in itertools.chain.from_iterable(files.items() for files in samples):
            member = tarfile.TarInfo(name)  # its time is 0, and it has no owner
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def animated_png(frames: np.ndarray) -> bytes:
    """Frames uint8 [F, H, W, 3] as an animated PNG, which is read without a video library."""
    first, *others = (PIL.Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, "PNG", save_all=True, append_images=others, duration=FRAME_MILLISECONDS)
    return file.getvalue()


def _json(row: object) -> bytes:
    return json.dumps(row).encode()
