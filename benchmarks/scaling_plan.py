"""Memory and time of training the paper's models with ``train flamingo --precision bf16``, by arithmetic.

    python -m benchmarks.scaling_plan [--preset NAME] …

Prints the tables of docs/scaling.md; the last line is JSON. No GPU was measured: rates are those that NVIDIA publishes,
times the share of them that is hoped for. tests/test_scaling_plan.py compares bytes and FLOPs with small models that
are trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import click
import torch

from flamingo_rt.config import FlamingoConfig, NFNetConfig, ViTConfig
from flamingo_rt.errors import UsageError
from flamingo_rt.model.flamingo import make_vision_encoder, on_meta_device
from flamingo_rt.parameter_count import reckon_parameters
from flamingo_rt.presets import PRESETS, own_preset
from flamingo_rt.training.flops import CountedFlops

BF16, FP32 = 2, 4  # bytes of a number
NEW_TOKENS = 2  # <image> and <|endofchunk|>
UTILISATION = 0.4
DAY = 86400  # seconds
RANKS = (1, 8, 64, 512)
MEMORY = 80e9  # bytes of an A100 or H100
RESERVED = 0.1  # of it, for CUDA's context, NCCL and what the allocator cannot use


@dataclass(frozen=True)
class Gpu:
    """A GPU with its published rate of dense products in bfloat16, in FLOPs a second."""

    name: str
    rate: float
    source: str


GPUS = (
    Gpu("L4", 121e12, "NVIDIA L4 data sheet: 242 TFLOPS with sparsity, half of it without"),
    Gpu("A100", 312e12, "NVIDIA A100 data sheet: 312 TFLOPS"),
    Gpu("H100 SXM", 989e12, "NVIDIA H100 data sheet: 1,979 TFLOPS with sparsity, half of it without"),
)


@dataclass(frozen=True)
class Corpus:
    """A dataset of the paper (§4): its documents, and how many are in a batch of its ablations; tokens, visuals and
    frames of a document as it is trained on (§A.2; of 32 and 64 tokens of a pair the larger)."""

    name: str
    documents: float
    batch: int
    tokens: int
    visuals: int = 1
    frames: int = 1


CORPORA = (
    Corpus("M3W, pages", 43.3e6, 256, 256, visuals=5),
    Corpus("ALIGN, pairs", 1.8e9, 512, 64),
    Corpus("LTIP, pairs", 312e6, 512, 64),
    Corpus("VTP, clips", 27e6, 64, 64, frames=8),
)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a model's state over all ranks: frozen weights in bfloat16, trained ones, their gradients and both
    moments of AdamW in float32."""

    frozen: int
    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.weights + self.gradients + self.moments


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of documents by part: forward through everything, backward where a gradient passes."""

    vision: float
    resampler: float
    cross_attention: float
    language: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.vision + self.resampler + self.cross_attention + self.language


def trained_parameters(config: FlamingoConfig) -> int:
    """Parameters that stage 3 trains: resampler, gated cross-attention, and the rows of the two new tokens."""
    counts = reckon_parameters(config)
    rows = NEW_TOKENS * config.language.width * (1 if config.language.tied_head else 2)
    return counts["resampler"] + counts["cross_attention"] + rows


def state_bytes(config: FlamingoConfig) -> StateBytes:
    """The state of stage 3 with ``precision = "bf16"``."""
    counts, trained = reckon_parameters(config), FP32 * trained_parameters(config)
    return StateBytes(BF16 * (counts["vision"] + counts["language"]), trained, trained, 2 * trained)


def gathered_bytes(config: FlamingoConfig) -> int:
    """Bytes that a rank of several holds beside its slices: the embeddings, which stay gathered, and of the gated
    layers, which are the largest, one, the next one and a gradient."""
    layer = reckon_parameters(config)["cross_attention"] / len(config.cross_layers)
    tables = config.language.vocab_size * config.language.width * (1 if config.language.tied_head else 2)
    return round(BF16 * tables + 3 * FP32 * layer)


def copied_bytes(config: FlamingoConfig) -> int:
    """Bytes of the bfloat16 copies of trained matrices that autocast keeps on every rank during a forward pass."""
    return BF16 * trained_parameters(config)


def received_bytes(config: FlamingoConfig, parts: int) -> int:
    """Bytes that each of many ranks receives in a step of ``parts``, one for each dataset at least: all weights for the
    forward pass and again for the backward pass, and gradients. The encoder has no backward pass."""
    state = state_bytes(config)
    encoder = BF16 * reckon_parameters(config)["vision"]
    return parts * (2 * (state.frozen + state.weights) - encoder + state.gradients)


def token_bytes(config: FlamingoConfig, tokens: int, recomputed: bool) -> int:
    """Activations that each of ``tokens`` tokens of a document keeps for the backward pass: those of all layers or,
    where they are ``recomputed``, the input of each layer and all of one; and the logits three times in float32."""
    language, cross_layers, logits = config.language, len(config.cross_layers), 3 * FP32 * config.language.vocab_size
    frozen = _frozen_layer(config, tokens)
    trained = _trained_layer(language.width, config.cross_attention.ff_multiplier)
    if not recomputed:
        return language.layers * frozen + cross_layers * trained + logits
    return BF16 * (language.layers + cross_layers) * language.width + max(frozen, trained) + logits


def _frozen_layer(config: FlamingoConfig, tokens: int) -> int:
    """Bytes a token of a language layer: nine vectors of its width and one of its feed-forward's, three with a gate.
    Position scores are an attention mask, [heads, tokens] for each token; relative ones keep the distances too."""
    language = config.language
    vectors = 9 * language.width + (3 if language.activation == "swiglu" else 1) * language.ff_width
    mask = BF16 * language.heads * tokens if language.positions in ("alibi", "relative") else 0
    return BF16 * vectors + mask + (8 * tokens if language.positions == "relative" else 0)


def _trained_layer(width: int, ff_multiplier: int) -> int:
    """Bytes a token of a gated layer, or a latent of a resampler layer: eight vectors and two of the feed-forward's."""
    return BF16 * (8 + 2 * ff_multiplier) * width


def visual_bytes(config: FlamingoConfig, frames: int, recomputed: bool) -> int:
    """Activations that a visual of ``frames`` pictures keeps for the backward pass: those of the resampler, with the
    keys and values of its features. A frozen encoder keeps none."""
    resampler = config.resampler
    width, inner = resampler.width, resampler.heads * resampler.head_width
    sources = frames * config.vision.feature_count + resampler.latents
    layer = BF16 * sources * (width + 2 * inner)
    layer += resampler.latents * _trained_layer(width, resampler.ff_multiplier)
    if not recomputed:
        return resampler.layers * layer
    return BF16 * (resampler.layers * resampler.latents + sources) * width + layer


def document_bytes(config: FlamingoConfig, corpus: Corpus, recomputed: bool) -> int:
    """Activations that a document keeps for the backward pass."""
    visuals = corpus.visuals * visual_bytes(config, corpus.frames, recomputed)
    return corpus.tokens * token_bytes(config, corpus.tokens, recomputed) + visuals


def rank_bytes(config: FlamingoConfig, ranks: int) -> int:
    """Bytes of one rank before any activation."""
    gathered = gathered_bytes(config) if ranks > 1 else 0
    return round(state_bytes(config).total / ranks) + copied_bytes(config) + gathered


def document_flops(config: FlamingoConfig, corpus: Corpus, documents: int = 1, cached: bool = False) -> StepFlops:
    """FLOPs of a step on a batch of ``documents``; with ``cached`` features the encoder costs nothing.

    A linear layer takes 2 FLOPs a parameter and input forward, the gradient of its input as many, that of its weight as
    many. The position scores of a relative language model are computed from a table of distances, once for a batch.
    """
    tokens, pictures = documents * corpus.tokens, documents * corpus.visuals
    counts = reckon_parameters(config)
    return StepFlops(
        0.0 if cached else float(picture_flops(config.vision) * pictures * corpus.frames),
        _resampler_flops(config, counts["resampler"], pictures, corpus.frames),
        _cross_attention_flops(config, counts["cross_attention"], tokens, pictures, corpus.visuals),
        _language_flops(config, counts["language"], tokens, corpus.tokens),
    )


@lru_cache
def picture_flops(config: NFNetConfig | ViTConfig) -> int:
    """FLOPs of the encoder for one picture, forward: counted on PyTorch's meta device, where nothing is computed."""
    with on_meta_device():
        encoder = make_vision_encoder(config)
        pixels = torch.empty(1, 3, config.image_size, config.image_size)
    with CountedFlops() as counted, torch.no_grad():
        encoder(pixels)
    return counted.total


def _resampler_flops(model: FlamingoConfig, parameters: int, pictures: int, frames: int) -> float:
    """Trained, with features that need no gradient: the input projection has none to pass on."""
    config = model.resampler
    features, inner = frames * model.vision.feature_count, config.heads * config.head_width
    tables = (config.latents + config.max_frames + model.vision.feature_count * config.spatial_positions) * config.width
    projection = model.vision.width * config.width * config.input_projection
    keys_values = 2 * config.layers * config.width * inner
    on_latents = parameters - tables - projection - keys_values
    attention = 2 * config.layers * config.latents * inner  # a product with keys, one with values, for each source
    sources = features + config.latents
    forward = (keys_values + attention) * sources + on_latents * config.latents
    return float(2 * pictures * (3 * forward + 2 * projection * features))


def _cross_attention_flops(
    model: FlamingoConfig, parameters: int, tokens: int, pictures: int, visuals: int
) -> float:
    """Trained; keys and values are made once for each visual, and a token's scores with those of its whole document."""
    config, layers, latents = model.cross_attention, len(model.cross_layers), model.resampler.latents
    inner, media = config.heads * config.head_width, config.media_width or model.resampler.width
    on_latents = layers * 2 * media * inner + (model.resampler.width * media if config.media_width else 0)
    attention = layers * 2 * inner * visuals * latents
    return float(2 * 3 * ((parameters - on_latents + attention) * tokens + on_latents * pictures * latents))


def _language_flops(model: FlamingoConfig, parameters: int, tokens: int, length: int) -> float:
    """Frozen: matrices pass a gradient to their input and get none. Attention counts whole, masked or not."""
    config = model.language
    inner, products = config.heads * config.head_width, parameters
    if not config.tied_head:
        products -= config.vocab_size * config.width  # a table that is looked up
    if config.positions == "learnt":
        products -= (config.context + config.position_offset) * config.width
    distances = config.layers * config.width * inner if config.positions == "relative" else 0
    products -= distances
    attention = config.layers * 2 * inner * length
    scores = config.layers * inner * length if distances else 0
    return float(2 * ((2 * products + 3 * attention + 2 * scores) * tokens + distances * length))


def step_flops(config: FlamingoConfig, cached: bool = False) -> float:
    """FLOPs of one step on the paper's mixture, with the batches of its ablations."""
    return sum(document_flops(config, corpus, corpus.batch, cached).total for corpus in CORPORA)


# Tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def state_table(configs: Mapping[str, FlamingoConfig]) -> str:
    """Bytes of the state, by part."""
    head = ("GB", "parameters", "trained", "frozen weights", "trained weights", "gradients", "moments", "in all")
    rows = []
    for name, config in configs.items():
        state = state_bytes(config)
        counts = (reckon_parameters(config)["total"], trained_parameters(config))
        parts = (state.frozen, state.weights, state.gradients, state.moments, state.total)
        rows.append((name, *(f"{count / 1e9:.2f}B" for count in counts), *map(_gigabytes, parts)))
    return table(head, rows)


def rank_table(configs: Mapping[str, FlamingoConfig]) -> str:
    """Bytes of one rank before activations, by the number of ranks; of it what is not divided; and what a rank holds
    when it starts, before the model is divided."""
    head = ("GB on each rank", *(f"{ranks} rank{'s' * (ranks > 1)}" for ranks in RANKS), "of it copies", "gathered",
            "at the start")
    rows = [
        (name, *(_gigabytes(rank_bytes(config, ranks)) for ranks in RANKS), _gigabytes(copied_bytes(config)),
         _gigabytes(gathered_bytes(config)), _gigabytes(state_bytes(config).frozen + state_bytes(config).weights))
        for name, config in configs.items()
    ]
    return table(head, rows)


def activation_table(configs: Mapping[str, FlamingoConfig]) -> str:
    """Bytes of activations, kept and recomputed, and the pages that fit beside the rest on a GPU of 80 GB, with 64
    ranks."""
    head = ("MB, kept / recomputed", "a token", "a picture", "a clip", "a page", "pages on a rank of 64")
    rows = []
    for name, config in configs.items():
        room = MEMORY * (1 - RESERVED) - rank_bytes(config, 64)
        both = [
            (token_bytes(config, CORPORA[0].tokens, recomputed), visual_bytes(config, 1, recomputed),
             visual_bytes(config, 8, recomputed), document_bytes(config, CORPORA[0], recomputed))
            for recomputed in (False, True)
        ]
        cells = [f"{kept / 1e6:,.1f} / {again / 1e6:,.1f}" for kept, again in zip(*both, strict=True)]
        rows.append((name, *cells, " / ".join(f"{max(0, int(room / page))}" for *_, page in both)))
    return table(head, rows)


def flops_table(configs: Mapping[str, FlamingoConfig]) -> str:
    """FLOPs of a document by part."""
    head = ("TFLOPs", "document", "encoder", "resampler", "gated layers", "language model", "in all",
            "GFLOPs a token")
    rows = []
    for name, config in configs.items():
        for corpus in (CORPORA[0], CORPORA[1], CORPORA[3]):
            # In a batch, as the table of distances is computed once for all of its documents.
            flops = document_flops(config, corpus, corpus.batch)
            parts = [each / corpus.batch / 1e12 for each in (*asdict(flops).values(), flops.total)]
            a_token = parts[-1] / corpus.tokens * 1e3
            rows.append((name, corpus.name, *(f"{each:.2f}" for each in parts), f"{a_token:.1f}"))
    return table(head, rows)


def rate_table(configs: Mapping[str, FlamingoConfig]) -> str:
    """Tokens of pages a day on one GPU, with features computed and cached."""
    head = ("million tokens of pages a day on one", *(gpu.name for gpu in GPUS),
            *(f"{gpu.name}, cached" for gpu in GPUS))
    rows = []
    for name, config in configs.items():
        cells = []
        for cached in (False, True):
            pages = CORPORA[0]
            flops = document_flops(config, pages, pages.batch, cached).total / (pages.batch * pages.tokens)
            cells += [f"{UTILISATION * gpu.rate * DAY / flops / 1e6:,.0f}" for gpu in GPUS]
        rows.append((name, *cells))
    return table(head, rows)


def corpus_table(configs: Mapping[str, FlamingoConfig], gpu: Gpu) -> str:
    """Days on one GPU: once through each dataset, and the steps of the mixture in which the pages come once."""
    steps = CORPORA[0].documents / CORPORA[0].batch
    head = (f"days of one {gpu.name}", *(corpus.name for corpus in CORPORA), f"{steps:,.0f} steps of the mixture",
            "a step on 64, s", "GB received in it")
    rows = []
    for name, config in configs.items():
        rate = UTILISATION * gpu.rate
        once = [document_flops(config, corpus, corpus.batch).total / corpus.batch * corpus.documents / rate / DAY
                for corpus in CORPORA]
        step = step_flops(config) / rate
        rows.append((name, *(f"{days:,.0f}" for days in (*once, steps * step / DAY)), f"{step / 64:.2f}",
                     f"{received_bytes(config, len(CORPORA)) / 1e9:,.0f}"))
    return table(head, rows)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f}"


def tables(configs: Mapping[str, FlamingoConfig]) -> list[str]:
    """The tables of docs/scaling.md, in its order."""
    return [state_table(configs), rank_table(configs), activation_table(configs), flops_table(configs),
            rate_table(configs), corpus_table(configs, GPUS[-1])]


@click.command()
@click.option("--preset", "names", multiple=True, type=click.Choice(list(PRESETS)), help="A preset to plan for.",
              default=("flamingo-3b", "flamingo-9b", "flamingo-80b"), show_default=True)
def main(names: tuple[str, ...]) -> None:
    """Print the tables."""
    try:
        configs = {name.removeprefix("flamingo-").upper(): own_preset(name) for name in names}
    except UsageError as error:
        raise click.ClickException(str(error)) from error
    for each in tables(configs):
        print(each + "\n")
    for gpu in GPUS:
        print(f"{gpu.name}: {gpu.source}; {UTILISATION:.0%} of it")
    print(json.dumps({
        name: {"state": asdict(state_bytes(config)), "page": document_bytes(config, CORPORA[0], False),
               "page_recomputed": document_bytes(config, CORPORA[0], True), "step_flops": step_flops(config)}
        for name, config in configs.items()
    }))


if __name__ == "__main__":
    main()
