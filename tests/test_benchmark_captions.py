"""Few-shot captions with given answers: what is asked of every system, how it is decoded, counted and told."""

from __future__ import annotations

import json

import pytest
from made_up_comparison import PLAN, answer, case, compared, large_tokenizer, record

from benchmarks import stand_ins
from benchmarks.comparison import captions, comparison_tables, shapes, workload_folder
from benchmarks.peers.answer_timing import (
    Answer,
    Plan,
    measure_caption,
    wanted_captions,
)
from flamingo_rt import load


def test_a_caption_is_decoded_in_turns_and_compared_with_the_given_one() -> None:
    turns: list[str] = []

    def ask(way: str, *milliseconds: float) -> Answer:
        turns.append(way)
        return answer(*milliseconds)

    given = {"shots": 4, "query": 2, "pictures": [1, 0], "input_ids": [7] * 9, "answer": [0, 1, 2]}
    ways = {"plain": lambda: ask("plain", 9.0, 2.0, 3.0), "other": lambda: ask("other", 9.0)}
    kept = measure_caption(given, ways, PLAN)
    assert turns == ["plain", "other"] * 3
    assert kept["plain"] == {"first_token_ms": pytest.approx([9.0] * 3), "decode_ms": pytest.approx([5.0] * 3),
                             "tokens_equal": True}
    assert (kept["tokens"], kept["prompt_tokens"], kept["other"]["tokens_equal"]) == (3, 9, False)


def caption(query: int, plain: float, guessing: float | None = None) -> dict:
    """Four tokens."""
    kept = {"shots": 4, "query": query, "tokens": 4, "plain": {"decode_ms": [plain], "tokens_equal": True}}
    if guessing is not None:
        kept["speculation"] = {"decode_ms": [guessing], "tokens_equal": True, "steps": [2, 2, 3],
                               "drafted": [3, 3, 3], "accepted": [1, 1, 0]}
    return kept


def test_the_table_of_captions_compares_with_and_without_guessing_and_with_the_peer() -> None:
    told = comparison_tables.captions_table(compared(
        captions_peer_fp32={"captions": [caption(0, 60.0)]},
        captions_ours_int8={"captions": [caption(0, 6.0, 3.0), caption(1, 12.0, 9.0)]},
    ))
    assert told.splitlines()[2:] == [
        "| open_flamingo fp32 | 4 | 1, 4 tokens | 20 (20 to 20) |  |  |  |  | yes |",
        "| flamingo-rt int8 | 4 | 2, 8 tokens | 3 (3 to 3) |  | 10.00 |  |  | yes |",
        "| flamingo-rt int8, guessing | 4 | 2, 8 tokens | 2 (2 to 2) | 1.50 | 20.00 | 4 for 6 | 2 of 6 | yes |",
    ]
    assert comparison_tables.captions_table(compared(ours_fp32=record(case(0, 1, 1)))) == ""


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two captions of the packaged model after a shot, and where they are."""
    pytest.importorskip("sklearn", reason="drawing scenes needs scikit-learn")
    folder = tmp_path_factory.mktemp("captions")
    tokenizer = large_tokenizer(folder / "language")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SHOTS", (1,)), ("QUERIES", 2), ("EACH", 2)):
            patch.setattr(captions, name, value)
        captions.write_captions(shapes.shape_of(shapes.SMALL), tokenizer, folder)
    return json.loads((folder / "workload.json").read_text())


def test_captions_are_words_of_the_packaged_model_as_tokens_of_the_large_one(captioned: dict) -> None:
    small, tokens = load().tokenizer, captioned["tokens"]
    back = {tokens["image"]: small.image_id, tokens["end_of_chunk"]: small.end_of_chunk_id}
    for each in captioned["cases"]:
        *answer, end = each["answer"]
        assert end == tokens["end_of_chunk"]
        assert small.decode([token - captions.FIRST_ID for token in answer]).strip() == each["text"] != ""
        prompt = small.decode([back.get(token, token - captions.FIRST_ID) for token in each["input_ids"]])
        assert prompt.count("Output:") == each["input_ids"].count(tokens["image"]) == 2
        assert max(each["input_ids"]) < tokens["rows"]


def test_texts_of_numbers_are_read_as_those_tokens(captioned: dict) -> None:
    class Tokenizer:
        tokens, image_id = shapes.shape_of(shapes.SMALL).tokens, captioned["tokens"]["image"]
        stop_ids = frozenset({captioned["tokens"]["end_of_chunk"]})

    tokens = stand_ins.NumberTokens(Tokenizer())
    for each in captioned["cases"]:
        text = workload_folder.written(shapes.shape_of(shapes.SMALL), each["parts"])
        assert tokens.encode(text) == each["input_ids"]
        assert each["pictures"] == workload_folder.shown(each["parts"]) == [2 * each["query"] + 1, 2 * each["query"]]
    assert tokens.stop_ids == Tokenizer.stop_ids


@pytest.mark.parametrize("speculation", [0, 7])
def test_a_given_answer_is_decoded_whatever_the_model_would_have_said(speculation: int) -> None:
    model = load()
    model.tokenizer = stand_ins.NumberTokens(model.tokenizer)
    model.backend = given = stand_ins.GivenAnswers(model.backend)
    answer = [20, 21, 22, 20, 21, 23, model.tokenizer.end_of_chunk_id]
    given.give(answer, 1 + 4 + 2)  # a beginning of text, four of the prefix, two of the query
    prefix = model.prompt("20 21 22 24")
    result = model.generate("30 31", prefix=prefix, speculation=speculation).result()
    assert (list(result.tokens), result.stop_reason) == (answer[:-1], "end_of_chunk")
    assert (result.drafted, result.accepted, result.steps) == ((8, 2, 4) if speculation else (0, 0, 6))


def test_guesses_of_a_given_answer_are_right_where_they_are_its_tokens() -> None:
    model = load()
    model.tokenizer = stand_ins.NumberTokens(model.tokenizer)
    model.backend = given = stand_ins.GivenAnswers(model.backend)
    answer = [20, 21] * 12
    given.give([*answer, model.tokenizer.end_of_chunk_id], 1 + 3)
    result = model.generate("40 41 42", speculation=7).result()
    assert list(result.tokens) == answer
    assert 0 < result.accepted <= result.drafted
    assert result.steps < len(answer)


def test_captions_are_wanted_by_shots_and_number() -> None:
    there = {"cases": [{"shots": shots, "query": query} for shots in (4, 8) for query in range(3)]}
    plan = Plan(1, 2, 1, 1.0, None, 0, 1, queries=2, caption_shots=(8,))
    assert wanted_captions(there, plan) == [{"shots": 8, "query": 0}, {"shots": 8, "query": 1}]
    with pytest.raises(SystemExit, match="--caption-shots 5 is not in the workload, which has 4, 8"):
        wanted_captions(there, Plan(1, 2, 1, 1.0, None, 0, 1, caption_shots=(5,)))
