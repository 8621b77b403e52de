"""Scores of a dual encoder on pictures that it was not trained on.

Pictures with a class (an ImageFolder tree): zero-shot classification, by the class name that lies nearest, and a linear
probe of the features that stage 3 gets. Pictures with texts: retrieval, picture to text and text to picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_rt.errors import DataError, DependencyError
from flamingo_rt.training.contrastive import cosines
from flamingo_rt.training.data.pair_batches import PairReader, pair_text
from flamingo_rt.training.data.samples import DamagedSample, Sample, SampleSource
from flamingo_rt.training.dual_encoder import DualEncoder
from flamingo_rt.training.sharding import World

# A class is the mean of what the text encoder makes of these (Radford et al., arXiv 2103.00020, §3.1.4).
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}")
MOST_PICTURES = 5000  # more are cut to as many, evenly: similarities are a matrix of pictures and texts
AT_ONCE = 64  # most pictures, or texts, in one forward pass
SHOWN = 4  # pictures whose nearest text is shown


class Recall(NamedTuple):
    """Shares of the queries for which the first result, or one of the first five, is right."""

    at_1: float
    at_5: float


@dataclass(frozen=True)
class VisionScores:
    """Shares from 0 to 1, None for what these pictures cannot measure: ``zero_shot`` and ``linear_probe`` accuracy need
    classes, the two recalls need texts. ``damaged`` pictures were left out. ``examples``: what was found for a few
    pictures, a line for each."""

    pictures: int
    damaged: int = 0
    classes: int = 0
    zero_shot: float | None = None
    linear_probe: float | None = None
    image_to_text: Recall | None = None
    text_to_image: Recall | None = None
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.zero_shot is not None:
            parts.append(f"zero-shot {self.zero_shot:.1%} of {self.classes} classes (chance {1 / self.classes:.1%})")
        if self.linear_probe is not None:
            parts.append(f"linear probe {self.linear_probe:.1%}")
        for name, recall in (("picture to text", self.image_to_text), ("text to picture", self.text_to_image)):
            if recall is not None:
                parts.append(f"{name} R@1 {recall.at_1:.1%}, R@5 {recall.at_5:.1%}")
        left_out = f" ({self.damaged} damaged left out)" if self.damaged else ""
        return f"{self.pictures} pictures{left_out}: {', '.join(parts)}"

    def scalars(self) -> dict[str, float]:
        """The scores by name, for a log."""
        found = {"zero_shot": self.zero_shot, "linear_probe": self.linear_probe}
        for name, recall in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            if recall is not None:
                found |= {f"{name}.recall_at_1": recall.at_1, f"{name}.recall_at_5": recall.at_5}
        return {f"evaluation.{name}": value for name, value in found.items() if value is not None}


def check_evaluation(source: SampleSource, reader: PairReader) -> None:
    """Raise now what `measure` would raise once the training is done, by reading pictures until one is sound."""
    for place in _places(source):
        with suppress(DamagedSample):
            sample = source.sample(place)
            _text(sample, reader, TEMPLATES)
            reader.pixels(sample)
            if sample.label is not None:
                _require_scikit_learn()
            return
    raise _nothing_read(source)


class _Read(NamedTuple):
    """Pictures that were read: their names, classes (None where a picture has none) and texts, embeddings [N, E]
    and mean features [N, Dv], on the host."""

    names: list[str]
    labels: list[str | None]
    texts: list[str]
    images: Tensor
    features: Tensor
    damaged: int


def measure(
    model: DualEncoder, source: SampleSource, reader: PairReader, templates: Sequence[str] = TEMPLATES,
    at_once: int = AT_ONCE, world: World | None = None,
) -> VisionScores:
    """Measure ``model`` on all samples of ``source``, at most `MOST_PICTURES` of them, evenly taken. ``at_once``
    pictures are encoded together.

    It is left in the mode, training or evaluation, that it was in; of several ranks each calls this, and the first one
    reads for all. Raises `DataError` when no picture can be read, `DependencyError` without scikit-learn.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            read = _read(model, source, reader, templates, at_once, world or World())
            labels = [label for label in read.labels if label is not None]
            if len(labels) == len(read.labels):
                return _classified(model, read, labels, reader, templates)
            return _retrieved(model, read, reader)
    finally:
        model.train(training)


def _read(
    model: DualEncoder, source: SampleSource, reader: PairReader, templates: Sequence[str], at_once: int, world: World
) -> _Read:
    pictures: list[_Picture] = []
    images: list[Tensor] = []
    features: list[Tensor] = []
    batches = _sound_pictures(source, reader, templates, at_once)
    # Ranks that read for themselves could find other samples damaged, and then wait for each other for ever.
    while batch := world.from_first(lambda: next(batches, [])):
        pixels = torch.from_numpy(np.stack([values for _, values in batch]))
        found = model(pixel_values=pixels.to(_device(model)))
        images.append(found.images.cpu())
        features.append(found.features.cpu())
        pictures += [picture for picture, _ in batch]
    if not pictures:
        raise _nothing_read(source)
    return _Read(
        [entry.name for entry in pictures], [entry.label for entry in pictures], [entry.text for entry in pictures],
        torch.cat(images), torch.cat(features), len(_places(source)) - len(pictures),
    )


class _Picture(NamedTuple):
    """The name, class and text of a picture that was read."""

    name: str
    label: str | None
    text: str


def _sound_pictures(
    source: SampleSource, reader: PairReader, templates: Sequence[str], at_once: int
) -> Iterator[list[tuple[_Picture, np.ndarray]]]:
    """The pictures that can be read, so many at once, with their pixel values float32 [3, S, S]."""
    batch: list[tuple[_Picture, np.ndarray]] = []
    for place in _places(source):
        with suppress(DamagedSample):
            sample = source.sample(place)
            text = _text(sample, reader, templates)
            batch.append((_Picture(sample.name, sample.label, text), reader.pixels(sample)))
        if len(batch) == at_once:
            yield batch
            batch = []
    if batch:
        yield batch


def _text(sample: Sample, reader: PairReader, templates: Sequence[str]) -> str:
    """The text of a sample, which the text encoder can read, as it can the name of its class in some template. Raises
    `DamagedSample`."""
    text = pair_text(sample)
    reader.require_tokens(sample.name, text)
    if sample.label is not None and not _readable(sample.label, reader, templates):
        raise DamagedSample(sample.name, f"the tokenizer makes no token of the name of its class {sample.label!r}")
    return text


def _readable(name: str, reader: PairReader, templates: Sequence[str]) -> list[str]:
    """The name of a class in every template of which the tokenizer makes any token."""
    texts = [template.replace("{}", name) for template in templates]
    return [text for text in texts if reader.text_ids(text)]


def _places(source: SampleSource) -> list[int]:
    """Places of at most `MOST_PICTURES` samples, evenly taken."""
    count = min(len(source), MOST_PICTURES)
    return [number * len(source) // count for number in range(count)]


def _nothing_read(source: SampleSource) -> DataError:
    return DataError(f"none of the {len(source)} pictures of the evaluation could be read: check the source")


def encode_texts(model: DualEncoder, texts: Sequence[str], reader: PairReader) -> Tensor:
    """Unit vectors [N, E] of texts, on the host."""
    found = []
    for first in range(0, len(texts), AT_ONCE):
        ids, mask = reader.padded([reader.text_ids(text) for text in texts[first : first + AT_ONCE]])
        found.append(model(text_ids=ids.to(_device(model)), mask=mask.to(_device(model))).texts.cpu())
    return torch.cat(found)


def class_embeddings(
    model: DualEncoder, names: Sequence[str], reader: PairReader, templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Unit vectors [classes, E]: each the mean direction of a class name in every template of which the tokenizer makes
    any token."""
    texts = [_readable(name, reader, templates) for name in names]
    found = encode_texts(model, [text for of_class in texts for text in of_class], reader)
    means = [of_class.mean(dim=0) for of_class in found.split(list(map(len, texts)))]
    return F.normalize(torch.stack(means), dim=-1)


def recall(similarity: Tensor, right: Tensor) -> Recall:
    """similarity [N, M] of N queries to M candidates, right bool [N, M] -> shares of the queries for which one of the
    most similar is right."""
    order = similarity.argsort(dim=1, descending=True, stable=True)
    hits = right.gather(1, order)
    return Recall(*(hits[:, :most].any(dim=1).double().mean().item() for most in (1, 5)))


def linear_probe(features: np.ndarray, labels: np.ndarray) -> float | None:
    """Accuracy of a logistic regression on features [N, D]: learnt on every other picture of each class, measured on
    the rest. None when fewer than two classes have two pictures. Raises `DependencyError` without scikit-learn."""
    _require_scikit_learn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen: dict[str, int] = {}
    learnt = np.zeros(len(labels), bool)
    for place, label in enumerate(labels):
        learnt[place] = seen.get(label, 0) % 2 == 0
        seen[label] = seen.get(label, 0) + 1
    if sum(count >= 2 for count in seen.values()) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that is not quite converged is near enough
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features[learnt], labels[learnt])
    return float(probe.score(features[~learnt], labels[~learnt]))


def _require_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise DependencyError("the linear probe needs scikit-learn: pip install 'flamingo-rt[train]'") from error


def _classified(
    model: DualEncoder, read: _Read, labels: list[str], reader: PairReader, templates: Sequence[str]
) -> VisionScores:
    classes = sorted(set(labels))
    nearest = cosines(read.images, class_embeddings(model, classes, reader, templates)).argmax(dim=1).tolist()
    found = [classes[place] for place in nearest]
    return VisionScores(
        len(labels), read.damaged, len(classes),
        zero_shot=float(np.mean([one == other for one, other in zip(found, labels, strict=True)])),
        linear_probe=linear_probe(read.features.numpy(), np.array(labels)),
        examples=_examples(read.names, found, labels),
    )


def _retrieved(model: DualEncoder, read: _Read, reader: PairReader) -> VisionScores:
    """A text that stands with several pictures is right for each of them."""
    texts = list(dict.fromkeys(read.texts))
    number = {text: place for place, text in enumerate(texts)}
    right = torch.zeros(len(read.texts), len(texts), dtype=torch.bool)
    right[torch.arange(len(read.texts)), torch.tensor([number[text] for text in read.texts])] = True
    similarity = cosines(read.images, encode_texts(model, texts, reader))
    found = [texts[place] for place in similarity.argmax(dim=1).tolist()]
    return VisionScores(
        len(read.texts), read.damaged, image_to_text=recall(similarity, right),
        text_to_image=recall(similarity.T, right.T), examples=_examples(read.names, found, read.texts),
    )


def _examples(names: Sequence[str], found: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Lines for a few pictures, evenly taken."""
    count = min(SHOWN, len(names))
    places = [number * len(names) // count for number in range(count)]
    return tuple(f"{names[place]}: {found[place]} (right: {wanted[place]})" for place in places)


def _device(model: DualEncoder) -> torch.device:
    return model.log_inverse_temperature.device
