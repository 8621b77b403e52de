"""Text to token ids and back, and the ids of the special tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError, UsageError
from flamingo_rt.tokenizer_file import explained, open_tokenizer


class TextTokenizer:
    """A ``tokenizer.json`` with the special tokens of a model.

    ``stop_ids`` are the tokens that end an answer: end of chunk, end of text, and `TokensConfig.stop`.
    """

    def __init__(self, path: Path, tokens: TokensConfig, vocab_size: int) -> None:
        """Raises `DataError` when the file is damaged, lacks a special token, or holds more tokens than the model."""
        self._path, self.tokens, self._vocab_size = path, tokens, vocab_size
        self._tokenizer = open_tokenizer(path, vocab_size)
        self.image_id = self._written(tokens.image)
        self.end_of_chunk_id = self._written(tokens.end_of_chunk)
        self.bos_id = self._special(tokens.bos) if tokens.bos else None
        self.stop_ids = frozenset(
            self._special(text) for text in (tokens.end_of_chunk, tokens.eos, *tokens.stop) if text
        )

    def _special(self, text: str) -> int:
        token = self._tokenizer.token_to_id(text)
        if token is None:
            raise DataError(f"{self._path} has no token {text!r}, which the model's config.json names")
        return token

    def _written(self, text: str) -> int:
        """The id of a special token that prompts hold as text: the tokenizer must find it between letters."""
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
        with self._explained():
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if max(ids, default=0) >= self._vocab_size:
            raise DataError(f"{self._path} makes the token id {max(ids)}, the model knows {self._vocab_size}")
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        with self._explained():
            return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _explained(self) -> AbstractContextManager[None]:
        return explained(f"{self._path} fails on a text", "it is damaged, or was not made for this model")
