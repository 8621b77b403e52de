"""Training of the tokenizer: byte-level BPE, so that any text can be encoded, learnt from the training texts."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flamingo_rt.config import TokensConfig
from flamingo_rt.errors import DataError


def train_tokenizer(texts: Iterable[str], vocab_size: int, tokens: TokensConfig) -> Tokenizer:
    """A tokenizer with ``vocab_size`` entries, or fewer when the texts yield fewer; the special tokens come first.

    Raises `DataError` when ``vocab_size`` does not hold the 256 bytes and the special tokens.
    """
    special = [text for text in (tokens.pad, tokens.bos, tokens.eos, tokens.image, tokens.end_of_chunk) if text]
    if vocab_size < 256 + len(special):
        raise DataError(f"vocab_size {vocab_size} is below the {256 + len(special)} bytes and special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
