"""Tasks for ``flamingo-rt evaluate task`` on held-out concepts of which training shows nothing, under no name.

    python -m recipes.photos.tasks
    flamingo-rt evaluate task runs/photos/tasks/stamps-words.toml --model BUNDLE --shots 0,5,10,20 --select balanced \\
        --out runs/photos/stamps-words

- ``stamps-words``, ``emoji-words``: 40 groups of five held-out concepts, each with a word that means nothing, new in
  each group; five queries a group. 5, 10 and 20 shots are 1, 2 and 4 of each concept. A query is another view than its
  support's, and another picture where its concept has several, as few stamps and one emoji have: the encoder's features
  alone solve these tasks (`nearest.py`), so they measure whether a model reads its shots, not how far it generalizes.
- ``styles-words``: the same of held-out concepts that two or three of the sources show. Shots are never of the query's
  source: a photograph of a teapot is asked about after drawings of one.
- ``stamps-captions``, ``stamps-exact``: the held-out stamps, after shots of trained stamps. What is right is the
  concept's name, for ``exact`` its head noun too, each with or without an article.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_rt.errors import DataError, FlamingoError
from flamingo_rt.training.scenes.nonce_words import nonce_words
from recipes.photos import WORK
from recipes.photos.held_out import COMPOUNDS, head_noun, is_unseen, singular
from recipes.photos.pictures import PICTURES
from recipes.photos.whole_folder import whole_folder

TASKS = WORK / "tasks"
SOURCES = ("stamps", "emoji", "clipart")
GROUPS, CONCEPTS = 40, 5  # groups; concepts of each, which is asked about once
SUPPORT = 8  # pictures of each concept in a group, from which shots are drawn
SEED = 0


@dataclass(frozen=True)
class ConceptPictures:
    """A concept's name and its views, by source picture; each a path relative to the folder of pictures."""

    name: str
    views: tuple[tuple[str, ...], ...]


def concepts_in(pictures: Path, part: str) -> list[ConceptPictures]:
    """The concepts of a part such as ``held-out/stamps``, sorted by name. Raises `DataError` where there are none."""
    folders = sorted(each for each in (pictures / part).glob("*") if each.is_dir())
    if not folders:
        raise DataError(f"{pictures / part} holds no class folders: run python -m recipes.photos.pictures first")
    return [ConceptPictures(folder.name.replace("_", " "), _by_picture(pictures, folder)) for folder in folders]


def unseen_in(pictures: Path, source: str) -> list[ConceptPictures]:
    """The held-out concepts of a source of which training shows nothing, under no name (`held_out.is_unseen`)."""
    return [concept for concept in concepts_in(pictures, f"held-out/{source}") if is_unseen(concept.name)]


def concepts_across(pictures: Path) -> list[ConceptPictures]:
    """The held-out concepts that two sources or more show, with the pictures of all: "gloves" are a "glove". Raises
    `DataError` where there are none."""
    merged: dict[str, tuple[tuple[str, ...], ...]] = {}
    for source in SOURCES:
        for concept in unseen_in(pictures, source):
            *before, last = concept.name.split()
            name = " ".join([*before, singular(last)])
            merged[name] = (*merged.get(name, ()), *concept.views)
    return [ConceptPictures(name, views) for name, views in sorted(merged.items()) if len(set(map(_source, views))) > 1]


def write_tasks(pictures: Path, folder: Path, seed: int = SEED, groups: int = GROUPS) -> dict[str, Path]:
    """Write all tasks into ``folder``, which lies beside ``pictures``; gives the TOML file of each by its name.

    Raises `DataError` where pictures are missing, or ``folder`` was not written by this recipe.
    """
    images = f"../{pictures.name}"
    with whole_folder(folder) as beside:
        named = {"stamps-words": unseen_in(pictures, "stamps"), "emoji-words": unseen_in(pictures, "emoji"),
                 "styles-words": concepts_across(pictures)}
        for number, (name, concepts) in enumerate(named.items()):
            rng = np.random.default_rng([seed, number])
            items, support = word_items(concepts, groups, rng, across=name == "styles-words")
            _write(beside, name, {"kind": "classes"}, images, items, support)
        held_out, trained = unseen_in(pictures, "stamps"), concepts_in(pictures, "train")
        shots = caption_items([_only(concept, "stamps") for concept in trained], lambda name: [name])
        captions = {"stamps-captions": ("cider", with_article), "stamps-exact": ("exact", with_head_noun)}
        for name, (metric, texts) in captions.items():
            kind = {"kind": "caption", "metric": metric}
            _write(beside, name, kind, images, caption_items(held_out, texts), shots)
    return {name: folder / f"{name}.toml" for name in (*named, *captions)}


def word_items(
    concepts: Sequence[ConceptPictures], groups: int, rng: np.random.Generator, across: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Queries and support of ``groups`` groups: five concepts with different head nouns and a new word for each. With
    ``across``, a concept's support is of other sources than its query."""
    items: list[dict[str, Any]] = []
    support: list[dict[str, Any]] = []
    for number in range(groups):
        words = nonce_words(rng, "heldout", CONCEPTS)
        for word, concept in zip(words, _drawn(concepts, rng), strict=True):
            query, shown = _query_and_support(concept, rng, across)
            row = {"class": word, "group": f"{number:02}"}
            items.append({"image": query, **row})
            support += [{"image": view, **row} for view in shown]
    return items, support


def caption_items(concepts: Sequence[ConceptPictures], texts: Any) -> list[dict[str, Any]]:
    """An item for the first view of each picture, the whole picture on white, with ``texts`` of the concept's name."""
    return [{"image": views[0], "texts": texts(concept.name)} for concept in concepts for views in concept.views]


def with_article(name: str) -> list[str]:
    """A name without and with its article: "onion", "an onion"."""
    return [name, f"{'an' if name[0] in 'aeiou' else 'a'} {name}"]


def with_head_noun(name: str) -> list[str]:
    """A name and its head noun, each without and with an article; a compound is what it says only as a whole."""
    if name in COMPOUNDS:
        return with_article(name)
    return list(dict.fromkeys([*with_article(name), *with_article(head_noun(name))]))


def _by_picture(pictures: Path, folder: Path) -> tuple[tuple[str, ...], ...]:
    """The views of a class folder's files ``SOURCE-PICTURE-VIEW.jpg``, by picture, each sorted by view."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for file in folder.glob("*-*-*.jpg"):
        source, picture, number = file.stem.rsplit("-", 2)
        found.setdefault((source, int(picture)), {})[int(number)] = file.relative_to(pictures).as_posix()
    return tuple(tuple(views[number] for number in sorted(views)) for _, views in sorted(found.items()))


def _only(concept: ConceptPictures, source: str) -> ConceptPictures:
    """A concept with its pictures of one source alone."""
    kept = tuple(views for views in concept.views if _source(views) == source)
    return ConceptPictures(concept.name, kept)


def _drawn(concepts: Sequence[ConceptPictures], rng: np.random.Generator) -> list[ConceptPictures]:
    """Five concepts, no two with one head noun. Raises `DataError` where there are fewer."""
    chosen: dict[str, ConceptPictures] = {}
    for index in rng.permutation(len(concepts)):
        chosen.setdefault(head_noun(concepts[index].name), concepts[index])
        if len(chosen) == CONCEPTS:
            return list(chosen.values())
    raise DataError(f"{len(chosen)} held-out head nouns have pictures, {CONCEPTS} are needed: run "
                    "python -m recipes.photos.fetch and python -m recipes.photos.pictures anew")


def _source(views: Sequence[str]) -> str:
    """The source of a picture by its views: ``stamps`` of "…/cow/stamps-0-3.jpg"."""
    return Path(views[0]).name.split("-")[0]


def _query_and_support(
    concept: ConceptPictures, rng: np.random.Generator, across: bool
) -> tuple[str, list[str]]:
    """A view to ask about, and views of the concept's other pictures (``across``: of other sources), where there are
    any, else the picture's others."""
    place = int(rng.integers(len(concept.views)))
    views = concept.views[place]
    query = views[int(rng.integers(len(views)))]
    others = [view for number, each in enumerate(concept.views) if number != place
              and not (across and _source(each) == _source(views)) for view in each]
    others = others or [view for view in views if view != query]
    return query, [others[index] for index in sorted(rng.permutation(len(others))[:SUPPORT])]


def _write(
    folder: Path, name: str, keys: dict[str, str], images: str, items: Sequence[dict[str, Any]],
    support: Sequence[dict[str, Any]],
) -> None:
    for kind, rows in (("items", items), ("support", support)):
        (folder / f"{name}-{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = {**keys, "items": f"{name}-items.jsonl", "support": f"{name}-support.jsonl", "images": images}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in said.items()]
    (folder / f"{name}.toml").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    """Write the tasks; gives the exit code."""
    try:
        written = write_tasks(PICTURES, TASKS)
    except FlamingoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, file in written.items():
        counts = [len((file.parent / f"{name}-{kind}.jsonl").read_text(encoding="utf-8").splitlines())
                  for kind in ("items", "support")]
        print(f"wrote {file}: {counts[0]} items, {counts[1]} pictures in the support")
    return 0


if __name__ == "__main__":
    sys.exit(main())
