"""Accuracy of answers to questions: the rule of VQA, exact match, and the part of a generated text that is judged.

`vqa_accuracy` does what the official evaluation of VQAv2 does (PythonEvaluationTools/vqaEvaluation/vqaEval.py in
GT-Vision-Lab/VQA, as of 2021; Antol et al., arXiv 1505.00468; https://visualqa.org/evaluation.html), its oddities too,
for figures that can be compared with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flamingo_rt.errors import DataError

ARTICLES = ("a", "an", "the")
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}
CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# Each contraction is recognized without any one of its apostrophes; the last entry is the official table's own mistake.
SPELLINGS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTIONS.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # removed from one answer: the official code passes the flag re.UNICODE where a count is expected
COMMA_IN_NUMBER = re.compile(r"\d,\d")


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Return the accuracy, 0 to 1, of ``answer`` to a question that ``people`` answered, ten of them in VQAv2.

    The mean, over every choice of all people but one, of min(matches / 3, 1). Answers are compared in their
    `normalized` form when people's differ, else as they are: then "Yes" is no match of "yes". With the answer of one
    person, which leaves none when left out, it is 1 for a match in the normalized form, else 0. Raises `DataError` when
    nobody answered.
    """
    if not people:
        raise DataError("a question has no people's answers: give it one or more, or leave it out")
    answer, *others = (text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *people))
    if len(others) == 1:
        return float(normalized(answer) == normalized(others[0]))
    if len(set(others)) > 1:
        answer, *others = (normalized(text) for text in (answer, *others))
    matches, count = others.count(answer), len(others)
    left_in, left_out = min(matches / 3, 1.0), min((matches - 1) / 3, 1.0)
    return ((count - matches) * left_in + matches * left_out) / count


def normalized(answer: str) -> str:
    """Return ``answer`` in lower case without punctuation and articles, with digits and apostrophes where they belong.

    A mark of punctuation becomes a space, or nothing if it stands beside a space anywhere in the answer or if the
    answer has a number with a comma. Periods are removed but for those before a digit. Apostrophes and colons are no
    punctuation.
    """
    closed_up = COMMA_IN_NUMBER.search(answer) is not None
    text = answer.translate({
        ord(mark): "" if closed_up or f"{mark} " in answer or f" {mark}" in answer else " " for mark in PUNCTUATION
    })
    words = (NUMBERS.get(word, word) for word in PERIOD.sub("", text, count=MOST_PERIODS).lower().split())
    return " ".join(SPELLINGS.get(word, word) for word in words if word not in ARTICLES)


def exact_match(answer: str, answers: Sequence[str]) -> bool:
    """Return whether ``answer`` is one of ``answers``, but for case, runs of whitespace and one final period."""
    return _plain(answer) in {_plain(other) for other in answers}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def first_answer(text: str) -> str:
    """Return the answer at the beginning of a generated text, without surrounding whitespace.

    It ends where the text goes on with another question ("Question", "Answer" or "Short", wherever they stand) or at a
    comma before a space, as in OpenFlamingo's evaluation (``postprocess_vqa_generation``), and at the end of the line.
    """
    line = text.strip().partition("\n")[0]
    return re.split("Question|Answer|Short|, ", line, maxsplit=1)[0].strip()


def first_caption(text: str) -> str:
    """Return the caption at the beginning of a generated text, without double quotes and surrounding whitespace.

    It ends at "Output", the word before the next caption, as in OpenFlamingo's evaluation
    (``postprocess_captioning_generation``).
    """
    return text.partition("Output")[0].replace('"', "").strip()
