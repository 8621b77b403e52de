"""Questions and answers in VQAv2's form (arXiv 1612.00837): a JSON file of questions, and one of what people answered.

    {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 42, "question": "Is it red?"}]}
    {"annotations": [{"question_id": 1, "answers": [{"answer": "yes"}, …]}]}

OK-VQA's files have the same form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flamingo_rt.errors import DataError
from flamingo_rt.evaluation.item_pool import Row
from flamingo_rt.evaluation.json_records import Record, read_object, records, reference
from flamingo_rt.training.data.row_fields import shown
from flamingo_rt.training.data.samples import DamagedSample


def vqa_rows(questions: Path, annotations: Path) -> Iterator[Row]:
    """Read the questions of a file with their answers from another. Answers to other questions are passed over.

    Raises `DataError` for files of another form, `DamagedSample` for an entry that cannot be used, a question without
    answers among them.
    """
    asked = read_object(questions)
    subtype = asked.get("data_subtype")
    listed = [(where, record, reference(record, "question_id", where))
              for where, record in records(asked, "questions", questions)]
    if not isinstance(subtype, str) or not subtype:
        raise DataError(f"{questions}: data_subtype is {shown(subtype)}; it must be a text such as val2014, which is a "
                        "part of the pictures' names")
    answers: dict[str, list[Any]] = {name: [] for _, _, name in listed}
    for where, record in records(read_object(annotations), "annotations", annotations):
        name = reference(record, "question_id", where)
        if answers.get(name):
            raise DamagedSample(where, f"the question {name} was already answered: each is answered in one place")
        if name in answers:
            answers[name] = _answers(record, where)
    for where, record, name in listed:
        if not answers[name]:
            raise DamagedSample(where, f"{annotations} has no answer to the question {name}")
        yield Row(where, name, "answers", answers[name], record.get("question"),
                  file=picture_name(subtype, record.get("image_id"), where))


def picture_name(subtype: str, image: Any, where: str) -> str:
    """The name of COCO's picture ``image``: ``COCO_val2014_000000000042.jpg``. Raises `DamagedSample` for a value that
    is no whole number from 0 to 12 digits."""
    if type(image) is not int or not 0 <= image < 10**12:
        raise DamagedSample(where, f"image_id is {shown(image)}, not a whole number of at most 12 digits")
    return f"COCO_{subtype}_{image:012}.jpg"


def _answers(record: Record, where: str) -> list[Any]:
    listed = record.get("answers")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise DamagedSample(where, f"answers is {shown(listed)}, not a list of objects with an answer each")
    return [entry.get("answer") for entry in listed]
