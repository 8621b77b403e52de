"""Tasks of a folder of classes: shots with words, a query that is another picture, and what is learnt of them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_model import small_config

from flamingo_rt.config import PromptsConfig
from flamingo_rt.errors import DataError, FlamingoError, UsageError
from flamingo_rt.training.data.class_tasks import ClassTasks, require_room
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.documents import DocumentWriter
from flamingo_rt.training.data.sources import open_source
from flamingo_rt.training.data.text_batches import document_text
from flamingo_rt.training.feature_cache import content_key
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.scenes.nonce_words import known_words
from flamingo_rt.training.tokenizer_training import train_tokenizer

SIZES = {"red_fox": 6, "owl": 5, "grey-seal": 3, "newt": 2, "lonely": 1}
PROMPTS = PromptsConfig(caption="It is", answer_separator=": ")


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "animals"
    for number, (name, count) in enumerate(SIZES.items()):
        (folder / name).mkdir(parents=True)
        for picture in range(count):
            color = (40 * number, 30 * picture, 99)
            PIL.Image.new("RGB", (8, 8), color).save(folder / name / f"{picture}.png")
    return folder


def options_of(folder: Path, **more) -> DataOptions:
    return DataOptions(str(folder), kind="tasks", **more)


def tasks_of(folder: Path, seed: int = 0, **more) -> ClassTasks:
    options = options_of(folder, **more)
    return ClassTasks.of(open_source(options), options, PROMPTS, seed)


def shots_of(tasks: ClassTasks, index: int) -> list[tuple[str, str, bool]]:
    """(file, word, whether it is learnt) of each picture of a task, the query last."""
    segments = tasks.sample(index).segments
    visuals, asked, answers = (segments[place::3] for place in range(3))
    assert len(visuals) == len(asked) == len(answers)
    assert {(text.text, text.learnt) for text in asked} == {("It is", False)}
    assert all(answer.text.startswith(": ") for answer in answers)
    return [(str(visual.content.relative_to(tasks.folder.root)), answer.text[2:], answer.learnt)
            for visual, answer in zip(visuals, answers, strict=True)]


def class_of(file: str) -> str:
    return file.split(os.sep)[0]


def test_each_class_of_a_task_has_a_word_of_its_own_and_as_many_shots(animals) -> None:
    tasks = tasks_of(animals)
    forms = Counter()
    for index in range(300):
        *shots, query = shots_of(tasks, index)
        words = {class_of(file): word for file, word, _ in shots}
        assert all(words[class_of(file)] == word for file, word, _ in (*shots, query))
        assert len(set(words.values())) == len(words)
        assert set(words.values()) <= set(known_words("train"))
        counts = Counter(class_of(file) for file, _, _ in shots)
        assert len(set(counts.values())) == 1
        forms[len(words), counts.popitem()[1]] += 1
        assert len({file for file, _, _ in (*shots, query)}) == len(shots) + 1  # the query is another picture too
        assert "lonely" not in words
    # Three classes always have one of 3 pictures or fewer; 4 shots need classes of 5 pictures.
    assert set(forms) == {(2, 1), (2, 2), (2, 4), (3, 1), (3, 2), (4, 1)}


def test_words_are_learnt_once_a_shot_has_shown_them(animals) -> None:
    tasks = tasks_of(animals)
    for index in range(100):
        seen: set[str] = set()
        for _, word, learnt in shots_of(tasks, index):
            assert learnt == (word in seen)
            seen.add(word)
        assert learnt  # the query


def test_any_class_is_asked_for_and_any_place_is_its(animals) -> None:
    """Ask this of 600 tasks of two classes of which each has two shots: nothing but the pictures tells the answer."""
    tasks = tasks_of(animals, ways=(2,), shots=(2,))
    asked, last = Counter(), 0
    for index in range(600):
        *shots, query = shots_of(tasks, index)
        if len(shots) == 4:
            asked["all"] += 1
            last += shots[-1][1] == query[1]
    assert 0.4 < last / asked["all"] < 0.6
    queries = Counter(class_of(shots_of(tasks, index)[-1][0]) for index in range(600))
    assert set(queries) == {"red_fox", "owl", "grey-seal", "newt"}
    assert min(queries.values()) > 100


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_tasks_says_the_names_and_learns_all_of_them(animals, share) -> None:
    tasks = tasks_of(animals, names=share)
    named = 0
    for index in range(200):
        shots = shots_of(tasks, index)
        if shots[0][1] in {"red fox", "owl", "grey seal", "newt"}:
            named += 1
            assert all(learnt and word == class_of(file).replace("_", " ").replace("-", " ")
                       for file, word, learnt in shots)
    assert abs(named / 200 - share) < 0.1 * (0 < share < 1) + 1e-9


def test_a_task_is_a_function_of_the_seed_and_its_number(animals) -> None:
    assert shots_of(tasks_of(animals), 5) == shots_of(tasks_of(animals), 5) != shots_of(tasks_of(animals), 6)
    assert shots_of(tasks_of(animals), 5) != shots_of(tasks_of(animals, seed=1), 5)


def test_a_run_that_goes_on_sees_that_files_or_options_changed(animals, tmp_path) -> None:
    first = tasks_of(animals)
    assert first.fingerprint() == tasks_of(animals).fingerprint()
    assert first.files == open_source(DataOptions(str(animals))).files
    for other in (tasks_of(animals, seed=1), tasks_of(animals, shots=(1,)), tasks_of(animals, ways=(2,)),
                  tasks_of(animals, names=0.5)):
        assert other.fingerprint() != first.fingerprint()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for picture in range(2):
            (tmp_path / name / f"{picture}.png").write_bytes(b"1")
    before = tasks_of(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(b"22")
    after = tasks_of(tmp_path)
    assert before.fingerprint() != after.fingerprint()
    assert before.files != after.files


def test_folders_that_say_the_same_name_are_one_class(tmp_path) -> None:
    for file in ("sea_lion/1.png", "sea-lion/1.png", "owl/1.png", "owl/deep/2.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    tasks = tasks_of(tmp_path, names=1.0)
    assert {label: len(pictures) for label, pictures in tasks.classes.items()} == {"sea lion": 2, "owl": 2}


@pytest.mark.parametrize(("classes", "ways", "message"), [
    ({"a": 5, "b": 1}, (2, 3), "has 1 classes of 2 pictures or more, and a task needs 2"),
    ({"a": 2, "b": 2}, (3, 4), "has 2 classes of 2 pictures or more, and a task needs 3"),
])
def test_a_folder_of_too_few_classes_is_refused(tmp_path, classes, ways, message) -> None:
    for name, count in classes.items():
        (tmp_path / name).mkdir()
        for picture in range(count):
            (tmp_path / name / f"{picture}.png").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        tasks_of(tmp_path, ways=ways)


def test_what_is_no_folder_of_classes_makes_no_tasks(tmp_path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "text": "a cat"}\n')
    for source in (tmp_path, tmp_path / "captions.jsonl"):
        with pytest.raises(DataError, match="holds pairs, and tasks are made of a folder with a folder of pictures"):
            open_source(options_of(source))


def test_the_kind_says_that_the_folders_beside_a_list_are_meant(animals, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for picture in range(2):
            (tmp_path / name / f"{picture}.png").write_bytes(b"")
    (tmp_path / "captions.jsonl").write_text('{"image": "a/1.png", "text": "a cat"}\n')
    assert len(open_source(DataOptions(str(tmp_path)))) == 1
    assert set(tasks_of(tmp_path).classes) == {"a", "b"}


# In batches


def config_and_tokenizer(folder: Path, visuals: int = 20):
    small = small_config()
    config = replace(small, max_visuals=visuals, language=replace(small.language, context=512), prompts=PROMPTS)
    texts = (document_text(tasks_of(folder, names=0.5).sample(index)) for index in range(50))
    return config, train_tokenizer(texts, config.language.vocab_size, config.tokens)


def refusal(folder: Path, visuals: int = 20, **more) -> str:
    config, tokenizer = config_and_tokenizer(folder, visuals)
    options = options_of(folder, **more)
    with pytest.raises(FlamingoError) as error:
        require_room(tasks_of(folder, **more), options, config, DocumentWriter(config, tokenizer, options))
    assert isinstance(error.value, (UsageError, DataError))
    return str(error.value)


def test_more_pictures_than_the_model_takes_are_refused(animals) -> None:
    # Two classes have six and five pictures, which are four shots each and a query; the others have fewer.
    assert "2 classes of 4 shots and a query are 9 pictures, and the model takes 8" in refusal(animals, visuals=8)
    assert "3 classes of 2 shots and a query are 7 pictures" in refusal(animals, visuals=6, ways=(2, 3), shots=(2,))


def test_a_document_must_hold_the_largest_task_to_the_token(animals) -> None:
    config, tokenizer = config_and_tokenizer(animals)
    message = refusal(animals, tokens=64)
    needed = int(message.split(" has ")[1].split(" tokens")[0])
    assert "and a document at most 64: raise tokens (within the model's context, 512)" in message
    for tokens in (needed, needed - 1):
        options = options_of(animals, tokens=tokens)
        writer = DocumentWriter(config, tokenizer, options)
        if tokens == needed:
            require_room(tasks_of(animals), options, config, writer)
        else:
            with pytest.raises(UsageError, match=f"has {needed} tokens, and a document at most {tokens}"):
                require_room(tasks_of(animals), options, config, writer)
    largest = max(len(shots_of(tasks_of(animals), index)) for index in range(200))
    assert largest == 9
    pages = (DocumentWriter(config, tokenizer, options).length(tasks_of(animals).sample(index), is_page=True)
             for index in range(200))
    assert max(pages) <= needed


def test_the_longest_answers_are_those_behind_the_separator(animals) -> None:
    """A tokenizer may make one token of the separator and a word's beginning."""
    tasks = tasks_of(animals, names=1.0, ways=(2,), shots=(1,))
    page = tasks.largest(2, lambda text: {": owl": 9, ": newt": 8}.get(text, 1))
    assert {segment.text for segment in page.segments[2::3]} == {": owl", ": newt"}
    assert page.segments[-1].text == ": owl"


def test_a_damaged_picture_is_one_line_in_whichever_task(animals, tmp_path) -> None:
    folder = tmp_path / "pets"
    shutil.copytree(animals, folder)
    (folder / "owl" / "1.png").write_bytes(b"no picture")
    (folder / "owl" / "2.png").write_bytes(b"no picture")
    config, tokenizer = config_and_tokenizer(animals)
    batches = DocumentBatches(tasks_of(folder), options_of(folder, batch=8, tokens=512, images=config.max_visuals),
                              config, tokenizer, 0, 0, None)
    damaged = [line for step in range(6) for line in batches.draw(step, 0, 1).damaged]
    assert len(damaged) > 4
    assert {line.split(":")[0] for line in damaged} == {"pets"}
    assert len(set(damaged)) == 2


def test_a_name_that_no_text_can_hold_is_refused_where_it_is_used(tmp_path, animals) -> None:
    for name in ("<image>", "owl"):
        (tmp_path / name).mkdir()
        for picture in range(2):
            (tmp_path / name / f"{picture}.png").write_bytes(b"")
    config, tokenizer = config_and_tokenizer(animals)
    for names, refused in ((0.0, False), (1.0, True)):
        options = options_of(tmp_path, names=names)
        writer = DocumentWriter(config, tokenizer, options)
        tasks = tasks_of(tmp_path, names=names)
        if refused:
            with pytest.raises(DataError, match=r"a class cannot be named: .*rename its folder"):
                require_room(tasks, options, config, writer)
        else:
            require_room(tasks, options, config, writer)


def test_all_of_a_task_is_in_its_document_and_what_is_known_is_learnt(animals) -> None:
    config, tokenizer = config_and_tokenizer(animals)
    options = options_of(animals, batch=6, tokens=512, next_image=0.0, images=config.max_visuals)
    tasks = tasks_of(animals)
    batches = DocumentBatches(tasks, options, config, tokenizer, 0, 0, None)
    drawn = batches.draw(0, 0, 1)
    assert drawn.error is None
    image, end = (tokenizer.token_to_id(text) for text in (config.tokens.image, config.tokens.end_of_chunk))
    for row, name in enumerate(drawn.names):
        shots = shots_of(tasks, int(name.split()[1]))
        ids, labels, index = (getattr(drawn.batch, part)[row].numpy() for part in ("input_ids", "labels",
                                                                                   "media_index"))
        assert (ids == image).sum() == len(shots)
        assert np.array_equal(index[ids == image], np.arange(len(shots)) + 1)
        learnt = tokenizer.decode(labels[labels >= 0].tolist(), skip_special_tokens=False)
        expected = "".join(f": {word}{config.tokens.end_of_chunk}" for _, word, known in shots if known)
        assert learnt.replace(" ", "") == (expected + config.tokens.eos).replace(" ", "")
        assert (ids == end).sum() == len(shots)


def test_a_picture_has_one_place_in_the_cache(animals) -> None:
    tasks, keys = tasks_of(animals), {}
    for index in range(40):
        for visual in tasks.sample(index).segments[::3]:
            key = content_key(visual, 8, 1.0)
            assert keys.setdefault(visual.name, key) == key
    assert len(set(keys.values())) == len(keys) == 16
