"""Documents about drawn scenes: details, then texts that follow from them."""

from __future__ import annotations

import re

from flamingo_rt.config import PromptsConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.scene_documents import MOVING, SceneDocuments, texts_of_scene

PROMPTS = PromptsConfig()
DOCUMENTS = [SceneDocuments(3, PROMPTS).sample(index).segments[0].text.split("\n") for index in range(200)]


def still(document: list[str]) -> bool:
    return " moving " not in document[0]


def test_a_document_repeats_and_another_seed_gives_another() -> None:
    text, again, other = (SceneDocuments(seed).sample(5).segments[0].text for seed in (3, 3, 4))
    assert text == again != other


def test_a_document_is_details_then_the_texts_of_its_scene_in_any_order() -> None:
    turned = 0
    for index, (details, *texts) in enumerate(DOCUMENTS):
        if not still([details]):
            continue
        written = list(texts_of_scene(3, index, PROMPTS, questions=6))
        assert sorted(texts) == sorted(written)
        assert len(set(texts)) == len(texts) >= 4
        turned += texts != written
        caption = next(text for text in texts if text.startswith("Output: ")).removeprefix("Output: ")
        assert re.sub(r"\b(small|large) | at \d \d\b", "", details).replace("a orange", "an orange") == caption
    assert turned > 100


def test_some_documents_are_about_what_moves() -> None:
    moving = [document for document in DOCUMENTS if not still(document)]
    assert 0.5 * MOVING < len(moving) / len(DOCUMENTS) < 2 * MOVING
    for details, *texts in moving:
        direction = re.findall(r" moving (left|right|up|down) at \d \d", details)
        assert len(direction) == 1
        assert f"{PROMPTS.ask(scenes.WHICH_WAY)} {direction[0]}" in texts
        caption = next(text for text in texts if text.startswith("Output: ")).removeprefix("Output: ")
        object_words = re.fullmatch(rf"an? (.*) moves {direction[0]}", caption)
        assert object_words
        assert re.search(rf"\b{object_words[1]} moving ", details)
    assert {direction for details, *_ in moving for direction in re.findall(r" moving (\w+)", details)} == {
        "left", "right", "up", "down"}
