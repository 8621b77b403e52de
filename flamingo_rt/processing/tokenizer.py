"""Text to token ids and back, and the ids of the special tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError, UsageError


class TextTokenizer:
    """A ``tokenizer.json`` with the special tokens of a model.

    ``stop_ids`` are the tokens that end an answer: end of chunk, and end of text.
    """

    def __init__(self, path: Path, tokens: TokensConfig, vocab_size: int) -> None:
        """Raises `DataError` when the file is damaged, lacks a special token, or holds more tokens than the model."""
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes())  # the library opens no path that is not UTF-8
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"cannot read {path}: {error}; the file is damaged or not a tokenizer.json") from error
        if self._tokenizer.get_vocab_size() > vocab_size:
            raise DataError(
                f"{path} has {self._tokenizer.get_vocab_size()} tokens, the model knows {vocab_size}: not its tokenizer"
            )
        self._path, self.tokens = path, tokens
        self._tokenizer.no_truncation()  # a stored setting would silently cut a prompt
        self._tokenizer.no_padding()
        self.image_id = self._written(tokens.image)
        self.end_of_chunk_id = self._written(tokens.end_of_chunk)
        self.bos_id = self._special(tokens.bos) if tokens.bos else None
        self.stop_ids = frozenset(self._special(text) for text in (tokens.end_of_chunk, tokens.eos) if text)

    def _special(self, text: str) -> int:
        token = self._tokenizer.token_to_id(text)
        if token is None:
            raise DataError(f"{self._path} has no token {text!r}, which the model's config.json names")
        return token

    def _written(self, text: str) -> int:
        """The id of a special token that prompts hold as text: it must be found between words."""
        token = self._special(text)
        if self.encode(f"a{text}a").count(token) != 1:
            raise DataError(f"{self._path} does not find its token {text!r} in a text: make it a special added token")
        return token

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written in it are recognised. Raises `UsageError` for broken Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            around = text[max(error.start - 20, 0) : error.start + 20]  # a whole prompt would fill the screen
            raise UsageError(f"the text {around!r} is not valid Unicode: give it in UTF-8") from error
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)
