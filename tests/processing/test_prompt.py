"""Prompts: token ids and phi, the index of the visual each token looks at (paper §3.1.3)."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.processing.prompt import build_prompt, continuation_ids
from flamingo_rt.processing.tokenizer import TextTokenizer
from flamingo_rt.processing.visuals import Image, Video
from flamingo_rt.training.tokenizer_training import train_tokenizer

A, B = Image("a.png"), Image("b.png")
CLIP = Video("clip.mp4", frames=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["a cat and a dog"], 270, TokensConfig()).save(str(path))
    return TextTokenizer(path, TokensConfig(), 270)


def test_a_visual_is_one_image_token_and_the_text_behind_it_refers_to_it(tokenizer):
    prompt = build_prompt(["so ", A, "cat", CLIP, B, "dog"], tokenizer)
    so, cat, dog = (tokenizer.encode(text) for text in ("so ", "cat", "dog"))
    image = tokenizer.image_id
    assert prompt.input_ids.tolist() == [tokenizer.bos_id, *so, image, *cat, image, image, *dog]
    assert prompt.media_index.tolist() == [0] + [0] * len(so) + [1] + [1] * len(cat) + [2, 3] + [3] * len(dog)
    assert prompt.visuals == (A, CLIP, B)
    assert prompt.input_ids.dtype == prompt.media_index.dtype == np.int64
    assert len(prompt) == len(prompt.input_ids)


def test_the_same_picture_twice_is_two_visuals(tokenizer):
    prompt = build_prompt([A, A], tokenizer)
    assert prompt.visuals == (A, A)
    assert prompt.media_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("part", ["cat", A, CLIP], ids=["text", "picture", "clip"])
def test_a_single_part_needs_no_list(part, tokenizer):
    alone, listed = build_prompt(part, tokenizer), build_prompt([part], tokenizer)
    np.testing.assert_array_equal(alone.input_ids, listed.input_ids)
    assert alone.visuals == listed.visuals


def test_a_continuation_has_no_beginning_token(tokenizer):
    whole, rest = build_prompt("cat", tokenizer), build_prompt("cat", tokenizer, start=False)
    assert whole.input_ids.tolist() == [tokenizer.bos_id, *rest.input_ids.tolist()]


def test_a_tokenizer_without_a_beginning_token_puts_none(tmp_path):
    tokens = TokensConfig(bos="")
    train_tokenizer(["x"], 260, tokens).save(str(tmp_path / "t.json"))
    tokenizer = TextTokenizer(tmp_path / "t.json", tokens, 260)
    assert build_prompt("cat", tokenizer).input_ids.tolist() == tokenizer.encode("cat")


def test_the_end_of_chunk_written_in_a_text_is_its_token(tokenizer):
    ids = build_prompt([A, "cat<|endofchunk|>"], tokenizer).input_ids
    assert ids[-1] == tokenizer.end_of_chunk_id


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("parts", [[], "", ["", ""]])
def test_an_empty_prompt_is_refused(parts, start, tokenizer):
    with pytest.raises(UsageError, match="empty"):
        build_prompt(parts, tokenizer, start=start)


def test_an_image_token_written_in_a_text_is_refused(tokenizer):
    with pytest.raises(UsageError, match="<image>: give the picture itself"):
        build_prompt([A, "look: <image>"], tokenizer)


def test_an_image_token_split_over_two_texts_is_refused(tokenizer):
    with pytest.raises(UsageError, match="<image>: give the picture itself"):
        build_prompt([A, "look: <im", "age>"], tokenizer)


def test_a_picture_between_the_halves_of_a_token_is_one_picture(tokenizer):
    prompt = build_prompt(["<im", A, "age>"], tokenizer)
    assert prompt.input_ids.tolist() == [tokenizer.bos_id, *tokenizer.encode("<im<image>age>")]
    assert prompt.media_index[-1] == 1


def test_an_image_token_in_another_spelling_is_refused(tmp_path):
    tokenizer = train_tokenizer(["x"], 261, TokensConfig())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=True, special=True)])
    tokenizer.save(str(tmp_path / "t.json"))
    tokenizer = TextTokenizer(tmp_path / "t.json", TokensConfig(), 261)
    assert build_prompt([A, "cat"], tokenizer).media_index[-1] == 1
    with pytest.raises(UsageError, match="read as <image> by the tokenizer"):
        build_prompt([A, "＜image＞"], tokenizer)


def test_a_text_that_is_not_unicode_is_shown_where_it_breaks(tokenizer):
    with pytest.raises(UsageError, match="not valid Unicode") as error:
        build_prompt(["x" * 5000, A, "look: \udcff", "x" * 5000], tokenizer)
    assert r"look: \udcff" in str(error.value)
    assert len(str(error.value)) < 200


def metaspace_tokenizer(folder, model) -> TextTokenizer:
    """A tokenizer like LLaMA's: a text begins with a mark, and what stands behind a special token does not."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(["<image>", "<|endofchunk|>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = TokensConfig(bos="<s>", eos="</s>", pad="")
    return TextTokenizer(folder / "tokenizer.json", tokens, tokenizer.get_vocab_size())


PIECES = ["▁Output", "Output", ":", "▁a", "a", "▁cat", "cat", "▁"]


def byte_pairs() -> models.BPE:
    """Merges every piece from its characters, left to right."""
    vocab, merges = {"<unk>": 0}, []
    for piece in PIECES:
        for end in range(1, len(piece) + 1):
            vocab.setdefault(piece[end - 1], len(vocab))
            vocab.setdefault(piece[:end], len(vocab))
            if end > 1 and (piece[: end - 1], piece[end - 1]) not in merges:
                merges.append((piece[: end - 1], piece[end - 1]))
    return models.BPE(vocab=vocab, merges=merges, unk_token="<unk>")


def unigrams() -> models.Unigram:
    """Prefers the longest pieces."""
    return models.Unigram([("<unk>", -20.0), *((piece, -float(9 - len(piece))) for piece in PIECES)], unk_id=0)


@pytest.fixture(scope="module", params=[byte_pairs, unigrams], ids=["BPE", "Unigram"])
def metaspace(request, tmp_path_factory):
    return metaspace_tokenizer(tmp_path_factory.mktemp("metaspace"), request.param())


def test_a_prompt_is_tokenized_as_one_text(metaspace):
    shown = [A, "Output: a cat<|endofchunk|>", B, "Output:"]
    prompt = build_prompt(shown, metaspace)
    whole = metaspace.encode("<image>Output: a cat<|endofchunk|><image>Output:")
    assert prompt.input_ids.tolist() == [metaspace.bos_id, *whole]
    alone = [id for part in ("<image>", shown[1], "<image>", shown[3]) for id in metaspace.encode(part)]
    assert whole != alone  # parts tokenized one by one each begin with the mark
    marked, plain = (metaspace.encode(text) for text in ("Output:", "<image>Output:"))
    assert plain[0] == metaspace.image_id
    assert marked != plain[1:]
    assert prompt.input_ids[-2:].tolist() == plain[1:]


def test_only_the_beginning_of_the_prompt_is_marked(metaspace):
    before, behind = build_prompt(["Output:", A], metaspace), build_prompt([A, "Output:"], metaspace)
    assert before.input_ids.tolist() == [metaspace.bos_id, *metaspace.encode("Output:"), metaspace.image_id]
    assert behind.input_ids.tolist() != [metaspace.bos_id, metaspace.image_id, *metaspace.encode("Output:")]


def test_neighbouring_texts_may_share_tokens(metaspace, tokenizer):
    for each in (metaspace, tokenizer):
        split, whole = build_prompt([A, "a c", "at"], each), build_prompt([A, "a cat"], each)
        np.testing.assert_array_equal(split.input_ids, whole.input_ids)


def test_a_prompt_that_continues_a_prefix_is_a_text_of_its_own(metaspace):
    continued = build_prompt("Output:", metaspace, start=False)
    assert continued.input_ids.tolist() == metaspace.encode("Output:")


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["a cat", " ", "Output:", "<|endofchunk|>", "cat", A, B, CLIP]), min_size=1),
    start=st.booleans(),
)
def test_ids_are_those_of_the_joined_text_and_phi_counts_its_visuals(parts, start, metaspace):
    prompt = build_prompt(parts, metaspace, start=start)
    text = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    assert prompt.input_ids.tolist() == [metaspace.bos_id] * start + metaspace.encode(text)
    np.testing.assert_array_equal(prompt.media_index, np.cumsum(prompt.input_ids == metaspace.image_id))
    assert prompt.visuals == tuple(part for part in parts if not isinstance(part, str))
    assert prompt.media_index[-1] == len(prompt.visuals)


PILLOW = PIL.Image.new("RGB", (3, 2))


@pytest.mark.parametrize(("part", "said"), [
    (Path("a.png"), r"the path 'a.png': write Image\('a.png'\)"),
    (Path("a.MP4"), r"the path 'a.MP4': write Video\('a.MP4'\)"),
    (PILLOW, r"a Pillow image \(RGB, 3x2\): write Image\(...\) around it"),
    (np.zeros((2, 3, 3), np.uint8), r"an array, <array uint8 \[2, 3, 3\]>: write Image\(...\) around it"),
    (np.zeros((4, 2, 3, 3), np.uint8), r"an array, <array uint8 \[4, 2, 3, 3\]>: write Video\(...\) around it"),
    (b"x", r"bytes: write Image\(...\)"),
    (None, "NoneType: write Image"),
    (["x"], r"a list: write Video\(...\) around the frames of a clip, or give its parts one by one"),
], ids=["path", "clip", "Pillow", "picture array", "clip array", "bytes", "None", "list"])
def test_a_part_of_another_type_is_named_with_how_to_write_it(part, said, tokenizer):
    with pytest.raises(UsageError, match=f"PixelValues, not {said}"):
        build_prompt(["x", part], tokenizer)
    if not isinstance(part, list):
        with pytest.raises(UsageError, match=f"PixelValues, not {said}"):
            build_prompt(part, tokenizer)


@pytest.mark.parametrize(("text", "kind"), [("photo.png", "Image"), ("../a/Photo.JPG", "Image"), ("clip.mp4", "Video")])
def test_a_text_that_is_the_path_of_a_picture_is_refused(text, kind, tokenizer):
    for parts in ([text, "Output:"], [A, text], text):
        with pytest.raises(UsageError, match=rf"is the path '{text}': write {kind}\('{text}'\)"):
            build_prompt(parts, tokenizer)


def test_a_path_of_several_words_is_refused_where_only_a_path_reads_so(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    for text in ("/home/me/my photo.png", "./my photo.png", "../my photo.png", "~/my photo.png", "~me/my photo.png",
                 "C:/my photo.png", "C:\\my photo.png", "https://a.example/my photo.png", "my photos/cat.png"):
        with pytest.raises(UsageError, match=r"a text of the prompt is the (path|address)"):
            build_prompt([A, text], tokenizer)
    assert len(build_prompt("my photo.png", tokenizer)) > 1  # a prompt may end so
    (tmp_path / "my photo.png").touch()
    with pytest.raises(UsageError, match="is the path"):
        build_prompt("my photo.png", tokenizer)


@pytest.mark.parametrize("text", ["Question: is it photo.png", "photo.png<|endofchunk|>", " photo.png", "a .png file",
                                  "photo.png?", "png", ".png", "\0 a.png", "a photo of cats/dogs in a.png",
                                  "yes/no? the file is a.png", "/a/b is a folder\nis it in a.png", "and / or a.png"])
def test_a_text_that_holds_a_name_of_a_picture_is_a_text(text, tokenizer):
    build_prompt([A, text], tokenizer)


def test_an_answer_to_choose_may_be_the_name_of_a_picture(tokenizer):
    assert continuation_ids([A, "Which file?"], "photo.png", tokenizer).tolist() == tokenizer.encode("photo.png")


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(["cat", " dog", "é", A, B, CLIP]), min_size=1))
def test_phi_counts_the_image_tokens_up_to_each_token(parts, tokenizer):
    prompt = build_prompt(parts, tokenizer)
    np.testing.assert_array_equal(prompt.media_index, np.cumsum(prompt.input_ids == tokenizer.image_id))
    assert len(prompt.visuals) == prompt.media_index[-1]


@pytest.mark.parametrize("parts", [["Output:", A, "a c"], [A, "Output:"], "Output:", A])
@pytest.mark.parametrize("text", ["at", "cat", " a cat", " "])
def test_a_continuation_is_tokenized_with_its_prompt(parts, text, metaspace):
    before = build_prompt(parts, metaspace).input_ids.tolist()
    joined = [parts, text] if isinstance(parts, str) or parts is A else [*parts, text]
    whole = build_prompt(joined, metaspace).input_ids.tolist()
    found = continuation_ids(parts, text, metaspace).tolist()
    if whole[: len(before)] == before:
        assert before + found == whole
    else:  # the text has changed the prompt's last token
        assert found == metaspace.encode(text)


def test_a_continuation_is_not_marked_as_a_beginning(metaspace):
    assert continuation_ids([A, "Output:"], "cat", metaspace).tolist() != metaspace.encode("cat")
    assert continuation_ids([A, "Output:"], "cat", metaspace).tolist() == metaspace.encode("<image>cat")[1:]


def test_an_address_is_refused_and_says_that_nothing_is_fetched(tokenizer):
    with pytest.raises(UsageError, match=r"the address 'https://a.example/c.png', and nothing is fetched"):
        build_prompt(["https://a.example/c.png", "Output:"], tokenizer)
