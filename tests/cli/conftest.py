"""The command line in this process, one small model behind it, and files to ask about."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from made_data import captions
from small_model import TEXTS, small_config
from torch import nn

from flamingo_rt.checkpoints import open_checkpoint, save_checkpoint
from flamingo_rt.cli import main
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.export.pipeline import export_model
from flamingo_rt.loading import load
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.presets import PRESETS
from flamingo_rt.runtime.model import Model
from flamingo_rt.training.tokenizer_training import train_tokenizer


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line with these arguments; nothing it does may end in a traceback."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["flamingo-rt", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)

    return call


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """Let Ctrl-C interrupt as at a terminal, this process and those that it starts: a process that a shell starts in
    the background ignores it."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.fixture
def infer(run: Callable[..., Outcome], bundle: Path) -> Callable[..., Outcome]:
    """`flamingo-rt infer` with the small bundle."""
    return lambda *arguments: run("infer", "--model", bundle, "--threads", 1, *arguments)


@pytest.fixture(scope="session")
def config() -> FlamingoConfig:
    """The small model's configuration; a head of its own, or every answer would repeat the prompt's last token."""
    config = small_config()
    return replace(config, language=replace(config.language, tied_head=False))


@pytest.fixture(scope="session")
def checkpoint(config: FlamingoConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with weights large enough that the next token depends on everything before it."""
    model, generator = Flamingo(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate", "gain")):
                nn.init.constant_(parameter, 0.7)
            elif parameter.ndim > 1:
                scale = 1.0 if "embedding" in name or "latents" in name else 2.0 / math.sqrt(parameter[0].numel())
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    tokenizer = train_tokenizer(TEXTS, config.language.vocab_size, config.tokens)
    folder = tmp_path_factory.mktemp("cli") / "checkpoint"
    save_checkpoint(folder, model, tokenizer.to_str())
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as a bundle."""
    folder = tmp_path_factory.mktemp("cli") / "bundle"
    export_model(open_checkpoint(checkpoint), folder, tolerance=1e-2)  # these weights amplify rounding
    return folder


@pytest.fixture(scope="session")
def model(bundle: Path) -> Model:
    """The bundle through the Python interface: what the command line must agree with."""
    return load(bundle, threads=1)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files, each of two colours."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = [folder / f"{name}.png" for name in "abc"]
    for file in files:
        pair = rng.integers(0, 256, (2, 1, 3), dtype=np.uint8)
        PIL.Image.fromarray(np.repeat(np.repeat(pair, 20, axis=0), 32, axis=1)).save(file)
    return files


@pytest.fixture
def small_preset(config: FlamingoConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset, ``small``, that trains in a moment."""
    monkeypatch.setitem(PRESETS, "small", lambda: config)


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve captioned pictures, ``mine``."""
    return captions(tmp_path_factory.mktemp("data") / "mine", 12)


@pytest.fixture
def train(run: Callable[..., Outcome], checkpoint: Path, captioned: Path) -> Callable[..., Outcome]:
    """Fine-tune the small checkpoint for three steps; later options count."""
    start = ("train", "flamingo", "--start-from", checkpoint, "--steps", 3, "--workers", 0, "--warmup-steps", 0)

    def call(out: Path, *arguments: object, data: str = f"{captioned},batch=4") -> Outcome:
        return run(*start, "--out", out, *(("--data", data) if data else ()), *arguments)

    return call
