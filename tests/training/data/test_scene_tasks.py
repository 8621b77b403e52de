"""Episodes as samples: pages whose known answers are learnt, and the same in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_model import small_config

from flamingo_rt.config import PromptsConfig
from flamingo_rt.training import scenes
from flamingo_rt.training.data.document_batches import DocumentBatches
from flamingo_rt.training.data.samples import Said, Visual
from flamingo_rt.training.data.scene_clips import FRAMES, SceneClips
from flamingo_rt.training.data.scene_tasks import SceneTasks, SceneTaskTexts
from flamingo_rt.training.data.text_batches import document_lines, document_text
from flamingo_rt.training.options import SCENES, DataOptions
from flamingo_rt.training.scenes.motion import DIRECTIONS
from flamingo_rt.training.tokenizer_training import train_tokenizer


@pytest.mark.parametrize("source", [SceneTasks(3), SceneTaskTexts(3), SceneClips(3)], ids=lambda source: source.kind)
def test_a_sample_is_a_function_of_its_number(source) -> None:
    def content(index):
        return [segment.content.tobytes() if isinstance(segment, Visual) else segment.text
                for segment in source.sample(index).segments]

    assert content(5) == content(5) != content(6)
    assert source.fingerprint() == type(source)(3).fingerprint() != type(source)(4).fingerprint()


def test_a_task_is_pictures_each_with_a_prompt_and_an_answer() -> None:
    prompts = PromptsConfig()
    for index in range(40):
        visuals, asked, answers = (SceneTasks(0).sample(index).segments[place::3] for place in range(3))
        assert len(visuals) == len(asked) == len(answers) > 1
        assert all(isinstance(visual, Visual) for visual in visuals)
        assert all(text.text == prompts.caption or text.text.startswith("Question: ") for text in asked)
        assert not any(text.learnt for text in asked)
        assert all(text.text.startswith(" ") for text in answers)
        assert answers[-1].learnt
        assert not answers[0].learnt


def test_a_task_in_words_describes_each_picture_before_its_prompt() -> None:
    for index in range(40):
        sample = SceneTaskTexts(0).sample(index)
        lines = document_text(sample).split("\n")
        assert len(lines) % 2 == 0
        assert all(line.startswith(("Output: ", "Question: ")) for line in lines[1::2])
        assert not any(line.startswith(("Output", "Question")) for line in lines[::2])
        shots = scenes.sample_episode(np.random.default_rng([0, index, 6])).shots
        learnt = [text.strip() for text, known in document_lines(sample) if known]
        assert learnt == [shot.answer for shot in shots if shot.known]


def test_the_shots_of_a_batch_are_all_there_and_what_is_known_is_learnt() -> None:
    small = small_config()
    config = replace(small, max_visuals=40, language=replace(small.language, context=1024))
    texts = (SceneTaskTexts(0).sample(index).segments[0].text for index in range(50))
    tokenizer = train_tokenizer(texts, config.language.vocab_size, config.tokens)
    options = DataOptions(SCENES, kind="tasks", batch=4, tokens=1024, next_image=0.0, images=40)
    batches = DocumentBatches(SceneTasks(0, config.prompts), options, config, tokenizer, 0, 0, None)
    batch = batches.draw(0, 0, 1).batch
    end = tokenizer.token_to_id(config.tokens.end_of_chunk)
    for row in range(4):
        ids, labels = batch.input_ids[row].numpy(), batch.labels[row].numpy()
        pictures = int((ids == tokenizer.token_to_id(config.tokens.image)).sum())
        assert pictures == int((ids == end).sum()) >= 2
        wanted = labels[labels >= 0]
        assert np.array_equal(wanted, ids[labels >= 0])
        # Each learnt answer is learnt to its end.
        answers = tokenizer.decode([int(token) for token in wanted], skip_special_tokens=False)
        assert answers.endswith(f"{config.tokens.end_of_chunk}{config.tokens.eos}")
        assert "Output" not in answers
        assert "Question" not in answers


def test_clips_are_asked_about_every_other_time() -> None:
    source = SceneClips(0)
    visual, asked, answer = source.sample(1).segments
    assert visual.content.shape == (FRAMES, 96, 96, 3)
    assert (asked.text, answer.text in DIRECTIONS) == (scenes.WHICH_WAY, True)
    visual, caption = source.sample(0).segments
    assert isinstance(caption, Said)
    assert " moves " in caption.text
