"""The tasks on which OpenFlamingo's evaluation is recorded: items, and a tokenizer that has their words as tokens."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CLASSES = ("red circle", "blue square", "star", "big green dot", "cat")
END_OF_TEXT = "<|endoftext|>"
COLORS, SHAPES = ("red", "blue", "green", "yellow"), ("circle", "square", "star", "cat", "dot")
FRAMES = ("Output:", "Question:", " Short", " answer:", " Answer:", ", ", ' "', "What", " color", " is", " the", "?",
          " an", " on", " and", " with", "yes", " no", " of", "big", " big", "is", " image")
# Answers of the model of write_evaluation.py, among those that people gave: else nothing would be right.
SAID = {8: ("PPPPP", "PPPPP", "P"), 10: ("OOOOO",) * 4, 11: ("OOOOO", "An OOOOO", "K!")}


@dataclass(frozen=True)
class Record:
    """A picture with all that any of the tasks asks about it. ``answers`` are those of ten people, ``meme`` is a text,
    ``hateful`` yes or no.
    """

    picture: str
    captions: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    label: str
    meme: str
    hateful: str


def make_record(number: int) -> Record:
    """Record ``number``; its picture is ``random_picture(number, …)``."""
    color, shape = COLORS[number % 4], SHAPES[number % 5]
    captions = (f"a {color} {shape}", f"the {shape} is {color}, and big", f'a "{shape}" with {color}')
    said = SAID.get(number, ())
    people = (*[color] * (6 - len(said)), *said, "yes", shape, "no", "no")
    return Record(f"{number}.png", captions, f"What color is the {shape}?", people, CLASSES[(number * 3 + 1) % 5],
                  f"so {shape}, yes?", ("no", "yes")[number // 3 % 2])


SUPPORT = tuple(make_record(number) for number in range(8))
QUERIES = tuple(make_record(number) for number in range(8, 14))


def make_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of ASCII with words of the tasks as tokens. Its last token is the end of text."""
    plain = "".join(map(chr, range(32, 127))) + "\n"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {written(byte_level, letter): number for number, letter in enumerate(plain)}
    merges: list[tuple[str, str]] = []
    for word in (*FRAMES, *COLORS, *SHAPES, *(f" {name}" for name in (*COLORS, *SHAPES))):
        letters = written(byte_level, word)
        for length in range(1, len(letters)):
            pair = (letters[:length], letters[length])
            if pair not in merges:
                merges.append(pair)
                vocabulary.setdefault("".join(pair), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return tokenizer


def written(byte_level: pre_tokenizers.ByteLevel, text: str) -> str:
    """A text in the letters that stand for bytes."""
    return "".join(piece for piece, _ in byte_level.pre_tokenize_str(text))
