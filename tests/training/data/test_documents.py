"""Documents, read back without the code that wrote them: texts, which picture each token sees, where loss is taken."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from small_model import small_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flamingo_rt.config import PromptsConfig, TokensConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.processing.prompt import build_prompt, continuation_ids
from flamingo_rt.processing.tasks import caption_prompt, caption_shot
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image
from flamingo_rt.training.data.documents import DocumentWriter
from flamingo_rt.training.data.samples import DamagedSample, Said, Sample, Visual
from flamingo_rt.training.data.usable_samples import NothingToLearn
from flamingo_rt.training.options import DataOptions
from flamingo_rt.training.tokenizer_training import train_tokenizer

CONFIG = replace(small_config(), language=replace(small_config().language, vocab_size=400, context=512))
TEXTS = ["Output: a cat and a dog", "Question: is it a cat? Answer: no", "word 1 word 2 word 3 word 45 word 67"] * 3
IMAGE, END = "<image>", "<|endofchunk|>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400, CONFIG.tokens)


@pytest.fixture
def writer(tokenizer):
    return lambda config=CONFIG, **options: DocumentWriter(config, tokenizer, DataOptions("data", **options))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def visual(name: str = "a.png") -> Visual:
    return Visual("image", b"", name)


def pair(*texts: str) -> Sample:
    return Sample("x:1", (visual(), *(Said(text, text is texts[-1]) for text in texts)))


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)


def learnt(tokenizer, document) -> str:
    wanted = document.labels != -100
    assert np.array_equal(document.labels[wanted], document.input_ids[wanted])
    return text_of(tokenizer, document.input_ids[wanted])


def written(writer, sample, seed=0):
    return writer.document([writer.pair(sample, rng(seed))])


# --- Pairs


@pytest.mark.parametrize(
    ("texts", "options", "text", "answer"),
    [
        (("a cat",), {}, "<image>Output: a cat", " a cat"),
        ((" a cat \n",), {}, "<image>Output: a cat", " a cat"),
        (("a cat",), {"prompt": ""}, "<image>a cat", "a cat"),
        (("a cat",), {"prompt": "", "leading_space": 1.0}, "<image> a cat", " a cat"),
        (("a cat",), {"leading_space": 1.0}, "<image>Output: a cat", " a cat"),
        (("a cat",), {"prompt": "A photo of"}, "<image>A photo of a cat", " a cat"),
        (("is it a cat?", "no"), {}, "<image>Question: is it a cat? Answer: no", " no"),
        (("is it a cat?", "no"), {"prompt": ""}, "<image>Question: is it a cat? Answer: no", " no"),
    ],
)
def test_a_pair_is_its_prompt_and_its_answer_which_is_learnt(writer, tokenizer, texts, options, text, answer) -> None:
    document = written(writer(**options), pair(*texts))
    assert text_of(tokenizer, document.input_ids) == f"<bos>{text}{END}<eos>"
    assert learnt(tokenizer, document) == f"{answer}{END}<eos>"
    assert document.media_index.tolist() == [0] + [1] * (len(document.input_ids) - 1)
    assert [shown.name for shown in document.visuals] == ["a.png"]


def test_another_models_prompts_are_taken(writer, tokenizer) -> None:
    config = replace(CONFIG, prompts=PromptsConfig("Output:", "Question:{} Short answer:", ""))
    assert learnt(tokenizer, written(writer(config), pair("a cat"))) == f"a cat{END}<eos>"
    document = written(writer(config, leading_space=1.0), pair("is it", "no"))
    assert text_of(tokenizer, document.input_ids) == f"<bos><image>Question:is it Short answer: no{END}<eos>"


def test_half_of_the_captions_begin_with_a_space(writer, tokenizer) -> None:
    half = writer(prompt="", leading_space=0.5)
    with_space = sum(learnt(tokenizer, written(half, pair("a cat"), seed)).startswith(" ") for seed in range(200))
    assert 70 < with_space < 130


def test_several_pairs_are_one_document(writer, tokenizer) -> None:
    plain = writer()
    pairs = [plain.pair(Sample("x", (visual(f"{word}.png"), Said(word))), rng()) for word in ("cat", "dog", "it")]
    document = plain.document(pairs)
    assert text_of(tokenizer, document.input_ids) == (
        f"<bos><image>Output: cat{END}<image>Output: dog{END}<image>Output: it{END}<eos>")
    assert learnt(tokenizer, document) == f" cat{END} dog{END} it{END}<eos>"
    seen = np.cumsum(document.input_ids == tokenizer.token_to_id(IMAGE))
    assert np.array_equal(document.media_index, seen)
    assert [shown.name for shown in document.visuals] == ["cat.png", "dog.png", "it.png"]


def test_a_model_without_first_and_last_tokens_gets_none(writer, tokenizer) -> None:
    document = written(writer(replace(CONFIG, tokens=TokensConfig(bos="", eos="", pad=""))), pair("a cat"))
    assert text_of(tokenizer, document.input_ids) == f"<image>Output: a cat{END}"


def sentencepiece_like() -> Tokenizer:
    """A tokenizer that marks the beginning of a text, as LLaMA's does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<pad>", "<bos>", "<eos>", IMAGE, END]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special,
                                                             show_progress=False))
    return tokenizer


def joining() -> Tokenizer:
    """A tokenizer without words, which joins what stands on both sides of a colon."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(["Output:a cat"] * 9, trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<pad>", "<bos>", "<eos>", IMAGE, END], show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyzO: ")))
    return tokenizer


@pytest.mark.parametrize("make", [None, sentencepiece_like, joining])
@pytest.mark.parametrize("separator", [" ", ""])
def test_a_document_has_the_tokens_that_a_prompt_and_its_answer_have_at_inference(
    tokenizer, tmp_path, make, separator
) -> None:
    config = replace(CONFIG, prompts=replace(CONFIG.prompts, answer_separator=separator))
    own = tokenizer if make is None else make()
    own.save(str(tmp_path / "tokenizer.json"))
    at_inference = TextTokenizer(tmp_path / "tokenizer.json", config.tokens, 400)
    plain = DocumentWriter(config, own, DataOptions("data"))
    document = written(plain, pair("a cat"))
    picture = Image(np.zeros((4, 4, 3), np.uint8))
    asked = caption_prompt(config, picture)
    prompt = build_prompt(asked, at_inference)
    answer = continuation_ids(asked, f"{separator}a cat{END}", at_inference)
    assert document.input_ids[:-1].tolist() == [*prompt.input_ids, *answer]
    assert (document.labels != -100).sum() == len(answer) + 1
    if make is not joining:
        shots = plain.document([plain.pair(pair("a cat"), rng()), plain.pair(pair("a dog"), rng())])
        whole = build_prompt([*caption_shot(config, picture, "a cat"), *caption_shot(config, picture, "a dog")],
                             at_inference)
        assert shots.input_ids[:-1].tolist() == whole.input_ids.tolist()
        assert shots.media_index[:-1].tolist() == whole.media_index.tolist()


def test_a_pair_that_does_not_fit_is_not_drawn_and_never_cut(writer, tokenizer) -> None:
    length = len(written(writer(), pair("a cat and a dog")).input_ids)
    assert len(written(writer(tokens=length), pair("a cat and a dog")).input_ids) == length
    with pytest.raises(NothingToLearn, match=f"a document at most {length - 1}"):
        writer(tokens=length - 1).pair(pair("a cat and a dog"), rng())
    short = replace(CONFIG, language=replace(CONFIG.language, context=length - 1))
    with pytest.raises(NothingToLearn):
        writer(short).pair(pair("a cat and a dog"), rng())


@pytest.mark.parametrize("token", [IMAGE, END, "<bos>", "<eos>"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_text_with_a_special_token_is_damaged(writer, token, place) -> None:
    texts = [f"a {token} cat" if number == place else "no" for number in range(2)]
    with pytest.raises(DamagedSample, match="x:1: a text holds one of <image>"):
        writer().pair(pair(*texts), rng())
    with pytest.raises(DamagedSample, match="x:2: a text holds one of"):
        writer().page(Sample("x:2", (visual(), Said(texts[place]))), rng())


@pytest.mark.parametrize("segments", [(), (Said("a"),), (visual(),), (visual(), visual()), (Said("a"), visual())])
def test_what_is_no_pair_is_damaged(writer, segments) -> None:
    if segments:
        with pytest.raises(DamagedSample, match="no picture or clip with a text"):
            writer().pair(Sample("x", segments), rng())
    with pytest.raises((DamagedSample, NothingToLearn)):
        writer().page(Sample("x", segments), rng())


def test_a_mismatched_tokenizer_is_refused(writer, tokenizer) -> None:
    with pytest.raises(DataError, match=r"the tokenizer has the token id 3\d\d, the model knows 300"):
        DocumentWriter(small_config(), tokenizer, DataOptions("data"))
    with pytest.raises(DataError, match="no token '<picture>'"):
        writer(replace(CONFIG, tokens=TokensConfig(image="<picture>")))
    for token in (IMAGE, END, "<bos>", "<eos>"):
        with pytest.raises(UsageError, match=f"prompt holds {re.escape(token)}"):
            writer(prompt=f"{token}Output:")


# --- Pages


def page(*parts: str | int) -> Sample:
    """Texts, and numbers for pictures of this name."""
    return Sample("page:1", tuple(Said(part) if isinstance(part, str) else visual(str(part)) for part in parts))


def words(first: int, count: int) -> str:
    return " ".join(f"word {number}" for number in range(first, first + count))


LONG = page(words(0, 30), 0, words(30, 30), 1, 2, words(60, 30), 3, words(90, 5))


def whole_page(tokenizer, sample) -> list[str]:
    """The tokens of a page as texts, written here by hand."""
    text, seen = "", False
    for part in sample.segments:
        text += part.text if isinstance(part, Said) else f"{END if seen else ''}{IMAGE}"
        seen = seen or isinstance(part, Visual)
    return [tokenizer.id_to_token(token) for token in tokenizer.encode(f"{text}{END}<eos>").ids]


def sees(tokens: list[str], following: bool) -> list[int]:
    """For each token of a window the number of the picture that it sees, by a loop; 0 for none."""
    pictures = tokens.count(IMAGE)
    seen, found = 0, []
    for token in tokens:
        seen += token == IMAGE
        sees_next = following and token not in (IMAGE, "<bos>")
        found.append(min(seen + 1, pictures) if sees_next else seen)
    return found


@pytest.mark.parametrize("following", [False, True])
@pytest.mark.parametrize(("tokens", "images"), [(512, 9), (40, 9), (100, 2), (100, 1), (25, 5)])
def test_windows_of_a_page_show_their_own_pictures(writer, tokenizer, following, tokens, images) -> None:
    plain = writer(tokens=tokens, images=images, next_image=float(following))
    every = whole_page(tokenizer, LONG)
    for seed in range(30):
        document = plain.page(LONG, rng(seed))
        window = [tokenizer.id_to_token(token) for token in document.input_ids.tolist()]
        assert window[0] == "<bos>"
        assert len(window) <= tokens
        starts = [start for start in range(len(every)) if every[start : start + len(window) - 1] == window[1:]]
        assert len(starts) == 1
        before, pictures = every[: starts[0]].count(IMAGE), window.count(IMAGE)
        assert [shown.name for shown in document.visuals] == [str(before + number) for number in range(pictures)]
        assert 1 <= pictures <= images
        if len(window) < min(tokens, len(every) + 1):  # cut before a picture too many
            assert pictures == images
            assert every[starts[0] + len(window) - 1] == IMAGE
        assert document.media_index.tolist() == sees(window, following)
        wanted = [token not in (IMAGE, "<bos>") and index > 0
                  for token, index in zip(window, document.media_index, strict=True)]
        assert (document.labels != -100).tolist() == wanted
        assert np.array_equal(document.labels[wanted], document.input_ids[wanted])
        assert any(token not in (END, "<eos>") for token, learn in zip(window, wanted, strict=True) if learn)


def test_windows_reach_every_token_that_can_see_a_picture(writer, tokenizer) -> None:
    plain = writer(tokens=100, next_image=0.0)
    found = set()
    for seed in range(200):
        found |= set(re.findall(r"\d+\b", text_of(tokenizer, plain.page(LONG, rng(seed)).input_ids)))
    assert {str(number) for number in range(30, 95)} <= found


def test_a_window_of_a_long_text_is_beside_its_picture(writer, tokenizer) -> None:
    long, plain = page(words(0, 400), 0, "word 999"), writer(tokens=30, next_image=0.0)
    for seed in range(20):
        text = text_of(tokenizer, plain.page(long, rng(seed)).input_ids)
        assert text.split(IMAGE)[1].startswith("word")


def test_texts_of_half_of_the_pages_see_the_picture_after_them(writer, tokenizer) -> None:
    short = page("word 1", 0, "word 2", 1, "word 3")
    plain = writer()
    following = sum(plain.page(short, rng(seed)).media_index[1] == 1 for seed in range(200))
    assert 70 < following < 130


def test_a_page_whose_pictures_come_after_all_of_its_text(writer, tokenizer) -> None:
    last = page(words(0, 5), 0, 1)
    with pytest.raises(NothingToLearn, match="a text sees a picture"):
        writer(next_image=0.0).page(last, rng())
    document = writer(next_image=1.0).page(last, rng())
    assert learnt(tokenizer, document).startswith("word 0 word 1")


@pytest.mark.parametrize("following", [0.0, 1.0])
def test_a_page_without_a_picture_or_without_text_is_not_drawn(writer, following) -> None:
    for sample in (page("word 1"), page(0, 1)):
        with pytest.raises(NothingToLearn):
            writer(next_image=following).page(sample, rng())


def test_a_window_is_cut_before_a_picture_too_many(writer, tokenizer) -> None:
    six = page("word 0", *(part for number in range(6) for part in (number, f"word {number}")))
    document = writer(next_image=0.0, images=5).page(six, rng())
    assert text_of(tokenizer, document.input_ids).endswith(f"<image>word 4{END}")
    alone = writer(next_image=0.0, images=1, tokens=20)  # the windows from the first picture on hold no text
    for seed in range(9):
        assert alone.page(page(0, 1, words(1, 9)), rng(seed)).visuals[0].name == "1"
    with pytest.raises(NothingToLearn, match="in no window of 255 tokens with 5 pictures"):
        writer(next_image=0.0, images=5).page(page(*range(6), "word 1"), rng())


def test_a_text_of_a_page_that_is_not_learnt_has_no_labels_nor_has_what_ends_it(writer, tokenizer) -> None:
    sample = Sample("x", (visual(), Said("word 1", learnt=False), visual(), Said("word 2"), visual(), Said("word 3")))
    assert learnt(tokenizer, writer(next_image=0.0).page(sample, rng())) == f"word 2{END}word 3{END}<eos>"
