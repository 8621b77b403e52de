"""`flamingo_rt.evaluation` asks and judges as OpenFlamingo's own evaluation does, on the same small model.

benchmarks/peers/write_evaluation.py ran open_flamingo 2.0.1 (``eval/evaluate.py`` of the wheel) and recorded prompts,
answers, likelihoods and scores. Its shots are drawn by its own random numbers, and given to ours here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from made_data import write_lines
from made_tasks import write_task
from peer_model import PeerFiles

from benchmarks.peers.random_weights import random_picture
from flamingo_rt.checkpoints import write_checkpoint
from flamingo_rt.evaluation.answer_accuracy import first_answer, first_caption
from flamingo_rt.evaluation.task import Item, Task
from flamingo_rt.evaluation.task_file import read_task
from flamingo_rt.evaluation.task_run import Answered, Setting, TaskRun
from flamingo_rt.evaluation.task_scores import item_scores
from flamingo_rt.importing.openflamingo import open_openflamingo
from flamingo_rt.loading import load
from flamingo_rt.processing.prompt import build_prompt
from flamingo_rt.processing.visuals import Image, Visual
from flamingo_rt.runtime.model import Model

FIXTURES = Path(__file__).parent.parent / "fixtures" / "openflamingo_evaluation"
TWIN = json.loads((FIXTURES / "twin.json").read_text())
ANSWERS = json.loads((FIXTURES / "answers.json").read_text())
SHOTS = (0, 2, 4)
WITHOUT_PICTURES = 2  # shots that stand for none


class GivenShots:
    """The shots that the peer drew for each query."""

    def __init__(self, task: Task, calls: Sequence[Mapping[str, Any]]) -> None:
        support = {item.name: item for item in task.support}
        self._chosen = {call["query"]: tuple(support[name] for name in call["shots"]) for call in calls}

    def choose(self, query: Item, count: int, seed: int) -> tuple[Item, ...]:
        assert len(self._chosen[query.name]) == count
        return self._chosen[query.name]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The peer's model, imported."""
    folder = tmp_path_factory.mktemp("twin")
    files = PeerFiles(TWIN).write(folder, write_text)
    write_checkpoint(folder / "checkpoint", open_openflamingo(files).model)
    return load(folder / "checkpoint")


def write_text(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(TWIN["tokenizer"]))
    (folder / "tokenizer_config.json").write_text(json.dumps(TWIN["tokenizer_config"]))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Task]:
    """A task of the peer's items, from a file: JSON lines of what ``line`` makes of each, and keys."""
    size = TWIN["vision_sizes"]["image_size"]
    for number, entry in enumerate([*TWIN["support"], *TWIN["queries"]]):
        PIL.Image.fromarray(random_picture(number, size, size)).save(tmp_path / entry["picture"])

    def made(line: Callable[[Mapping[str, Any]], Mapping[str, Any]], **keys: Any) -> Task:
        for pool in ("support", "queries"):
            write_lines(tmp_path / f"{pool}.jsonl", [
                {"image": entry["picture"], "id": entry["picture"], **line(entry)} for entry in TWIN[pool]])
        return read_task(write_task(tmp_path, items="queries.jsonl", support="support.jsonl", **keys))

    return made


@pytest.fixture
def captions(make: Callable[..., Task]) -> Task:
    return make(lambda entry: {"texts": entry["captions"]}, kind="caption", after="\n")


@pytest.fixture
def questions(make: Callable[..., Task]) -> Task:
    return make(lambda entry: {"question": entry["question"], "answers": entry["answers"]}, kind="question",
                metric="vqa", after="\n", beams=3, max_new_tokens=5)


@pytest.fixture
def classes(make: Callable[..., Task]) -> Task:
    return make(lambda entry: {"class": entry["label"]}, kind="classes", classes=list(TWIN["classes"]), per_token=True)


@pytest.fixture
def memes(make: Callable[..., Task]) -> Task:
    return make(lambda entry: {"question": entry["meme"], "class": entry["hateful"]}, kind="classes", per_token=True,
                before="is an image with: '{}' written on it. Is it hateful? Answer:")


def answered(
    twin: Model, task: Task, calls: Sequence[Mapping[str, Any]], shots: int, folder: Path, orders: int = 1
) -> dict[str, Answered]:
    """Our answers by query, with the peer's shots."""
    run = TaskRun(twin, task, GivenShots(task, calls), orders)
    file = folder / f"{len(list(folder.glob('*.answers')))}.answers"
    return {found.item: found for found in run.answers([Setting(shots, 0)], file, {}, False)}


Asked = tuple[Sequence[Any], Sequence[Any]]  # parts of a prompt: those that were read before, and its own


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """The prompts that the model is asked, in their order."""
    prompts: list[Asked] = []
    read: dict[int, tuple[Any, Sequence[Any]]] = {id(None): (None, [])}
    prompt, generate, score = Model.prompt, Model.generate_batch, Model.score

    def reading(self: Model, parts: Any) -> Any:
        state = prompt(self, parts)
        read[id(state)] = (state, parts)
        return state

    def generating(self: Model, batch: Sequence[Any], **options: Any) -> Any:
        prompts.extend((read[id(options["prefix"])][1], parts) for parts in batch)
        return generate(self, batch, **options)

    def scoring(self: Model, parts: Any, *arguments: Any, **options: Any) -> Any:
        prompts.append((read[id(options.get("prefix"))][1], parts))
        return score(self, parts, *arguments, **options)

    for name, recording in (("prompt", reading), ("generate_batch", generating), ("score", scoring)):
        monkeypatch.setattr(Model, name, recording)
    return prompts


def check_prompts(twin: Model, prompts: Sequence[Asked], calls: Sequence[Mapping[str, Any]]) -> None:
    """The same texts, token ids and pictures, whatever the order of the queries."""
    ours, pictures = {}, {}
    for before, parts in prompts:
        text = "".join("<image>" if isinstance(part, Visual) else part for part in (*before, *parts))
        built = [build_prompt(each, twin.tokenizer, start=not number) for number, each in enumerate((before, parts))
                 if each]
        ours[text] = [token for each in built for token in each.input_ids.tolist()]
        pictures[text] = sum(len(each.visuals) for each in built)
    assert ours == {call["prompt"]: call["ids"] for call in calls}
    assert pictures == {call["prompt"]: call["pictures"] for call in calls}


def generated(
    twin: Model, task: Task, asked: list[Asked], kind: str, shots: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Answered]]:
    """The peer's record of a task, and our answers, whose prompts and texts are checked to be the peer's."""
    theirs = ANSWERS[kind][str(shots)]
    ours = answered(twin, task, theirs["calls"], shots, folder)
    check_prompts(twin, asked, theirs["calls"])
    assert {name: found.answer for name, found in ours.items()} == {
        call["query"]: call["output"] for call in theirs["calls"]}
    return theirs, ours


@pytest.mark.parametrize("shots", SHOTS)
def test_captions_are_asked_for_generated_and_cut_as_by_the_peer(
    twin: Model, captions: Task, asked: list[Asked], shots: int, tmp_path: Path
) -> None:
    theirs, ours = generated(twin, captions, asked, "captions", shots, tmp_path)
    for name, judged in theirs["judged"].items():  # the input of CIDEr, which takes no notice of surrounding space
        assert first_caption(ours[name].answer) == judged.strip()
    (settings,) = {(call["num_beams"], call["length_penalty"], call["max_generation_length"])
                   for call in theirs["calls"]}
    assert settings == (captions.beams, captions.length_penalty, captions.max_new_tokens)


@pytest.mark.parametrize("shots", SHOTS)
def test_questions_are_asked_answered_and_scored_as_by_the_peer(
    twin: Model, questions: Task, asked: list[Asked], shots: int, tmp_path: Path
) -> None:
    theirs, ours = generated(twin, questions, asked, "questions", shots, tmp_path)
    scores = item_scores("vqa", questions.items, [ours[item.name].answer for item in questions.items])
    for item, score in zip(questions.items, scores.tolist(), strict=True):
        assert round(100 * score, 2) == theirs["accuracies"][item.name]
    assert round(100 * scores.mean(), 2) == theirs["accuracy"]


def likelihoods(found: Answered, names: Sequence[str]) -> list[float]:
    assert found.likelihoods is not None
    return [found.likelihoods[name] for name in names]


@pytest.mark.parametrize("shots", [2, 4])
def test_classes_have_the_peers_likelihoods_in_each_order_of_the_shots(
    twin: Model, classes: Task, asked: list[Asked], shots: int, tmp_path: Path
) -> None:
    calls = ANSWERS["classes"][str(shots)]["calls"]
    orders = len(calls) // len(classes.items)  # of each query, one after the other
    for place in range(orders):
        ours = answered(twin, classes, calls[place::orders], shots, tmp_path)
        for call in calls[place::orders]:
            found = likelihoods(ours[call["query"]], classes.classes)
            assert found == pytest.approx(call["likelihoods"], abs=1e-3)
    check_prompts(twin, asked, calls)


@pytest.mark.parametrize("shots", [2, 4])
def test_memes_have_the_peers_prompts_and_likelihoods(
    twin: Model, memes: Task, asked: list[Asked], shots: int, tmp_path: Path
) -> None:
    calls = ANSWERS["memes"][str(shots)]["calls"]
    ours = answered(twin, memes, calls, shots, tmp_path)
    check_prompts(twin, asked, calls)
    assert memes.classes == ("no", "yes")  # the order of the peer's
    for call in calls:
        assert likelihoods(ours[call["query"]], memes.classes) == pytest.approx(call["likelihoods"], abs=1e-3)


def test_the_mean_over_both_orders_of_two_shots_is_the_peers_ensemble(
    twin: Model, classes: Task, tmp_path: Path
) -> None:
    by_query: dict[str, list[Mapping[str, Any]]] = {}
    for call in ANSWERS["classes"]["2"]["calls"]:
        by_query.setdefault(call["query"], []).append(call)
    ours = answered(twin, classes, [each[0] for each in by_query.values()], 2, tmp_path, orders=6)
    # The peer shuffles each time, so it can take one order twice: there it has no mean over both.
    both = {query: each for query, each in by_query.items() if each[0]["shots"] != each[1]["shots"]}
    assert len(both) >= 2
    for query, each in both.items():
        theirs = torch.tensor([call["likelihoods"] for call in each]).mean(0)
        assert likelihoods(ours[query], classes.classes) == pytest.approx(theirs.tolist(), abs=1e-3)
        assert ours[query].answer == classes.classes[int(theirs.argmax())]


def test_without_shots_the_peer_ranks_classes_of_another_picture(
    twin: Model, classes: Task, asked: list[Asked], tmp_path: Path
) -> None:
    """Its prompt is ours. But it gets the pictures of the two shots too, and the prompt's one image token stands for
    the first of them: ``if effective_num_shots > 0`` in ``evaluate_classification``, where captions and questions have
    ``if num_shots > 0``."""
    calls = ANSWERS["classes"]["0"]["calls"]
    ours = answered(twin, classes, calls[::2], 0, tmp_path)
    check_prompts(twin, asked, [{**call, "pictures": 1} for call in calls[::2]])
    assert {call["pictures"] for call in calls} == {3}
    files = {item.name: item.file for item in (*classes.support, *classes.items)}
    for call in calls[::2]:
        before, after = call["prompt"].split("<image>")
        for picture, expected in ((call["shots"][0], call["likelihoods"]),
                                  (call["query"], likelihoods(ours[call["query"]], classes.classes))):
            scores = twin.score([before, Image(files[picture]), after], classes.classes)
            found = {score.text: score.logprob_per_token for score in scores}
            assert [found[name] for name in classes.classes] == pytest.approx(expected, abs=1e-3)


def test_the_recorded_answers_are_a_fair_test() -> None:
    """They differ from each other, some end before the limit, some are cut, and some are right."""
    outputs = {kind: [call["output"] for each in ANSWERS[kind].values() for call in each["calls"]]
               for kind in ("captions", "questions")}
    assert all(len(set(texts)) > len(texts) / 2 for texts in outputs.values())
    assert any(first_answer(text) != text.strip() for text in outputs["questions"])
    assert 0 < sum(each["accuracy"] for each in ANSWERS["questions"].values()) < 300
