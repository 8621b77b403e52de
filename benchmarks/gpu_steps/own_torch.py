"""This project's own PyTorch model on a device, with random weights: what the exported graphs are beside plain PyTorch.

    python -m benchmarks.gpu_steps.own_torch --work FOLDER --model openflamingo-3b --device cuda [--compile inductor]

The decode loop has a cache of fixed size. Output: JSON lines (`device_timing.py`).
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison.shapes import shape_of
from benchmarks.peers.answer_timing import Answer, emit
from benchmarks.peers.device_timing import device_options, emit_cases, plan_of_device, wanted
from flamingo_rt import Image
from flamingo_rt.checkpoints import DTYPES
from flamingo_rt.config import FlamingoConfig
from flamingo_rt.model.cross_attention import one_after_the_other
from flamingo_rt.model.flamingo import Flamingo, on_meta_device
from flamingo_rt.model.language_model import ScoreBias
from flamingo_rt.processing.preprocess import visual_pixels


class FixedCache:
    """`Attend` over a fixed buffer [1, Hk, C, d] for each layer; attention masks the slots that are not written yet."""

    def __init__(self, config: FlamingoConfig, capacity: int, device: str, dtype: torch.dtype) -> None:
        language = config.language
        shape = (language.layers, 2, 1, language.kv_heads, capacity, language.head_width)
        self._buffers = torch.zeros(shape, device=device, dtype=dtype)
        self._slots = torch.arange(capacity, device=device)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        for buffer, new in zip(self._buffers[layer], (key, value), strict=True):
            buffer.index_copy_(2, positions[0], new.transpose(1, 2))
        allowed = self._slots <= positions[:, None, :, None]  # [B, 1, T, C]
        scores = 0.0 if bias is None else bias(bias_query, positions, len(self._slots)).to(query.dtype)
        mask = torch.where(allowed, scores, torch.finfo(query.dtype).min).to(query.dtype)
        keys, values = self._buffers[layer]
        grouped = query.shape[2] != key.shape[2]
        out = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=grouped)
        return out.transpose(1, 2)


class Loop:
    """A model with random weights on a device, and its greedy answers."""

    def __init__(self, config: FlamingoConfig, device: str, dtype: torch.dtype) -> None:
        with on_meta_device():
            model = Flamingo(config)
        self.model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        torch.manual_seed(0)
        for parameter in self.model.parameters():  # vectors, gates among them, are 0.5
            parameter.normal_(std=parameter[0].numel() ** -0.5) if parameter.ndim > 1 else parameter.fill_(0.5)
        self.step, self._config, self._device, self._dtype = self.forward, config, device, dtype

    @torch.inference_mode()
    def answer(self, case: dict[str, Any], workload: dict[str, Any], tokens: int) -> Answer:
        """Answer greedily, timed token by token; reading the pictures' files is included."""
        start, times, chosen = time.perf_counter(), [], []
        pixels = [visual_pixels(Image(workload["pictures"][number]), self._config) for number in case["pictures"]]
        pictures = torch.stack([torch.from_numpy(each) for each in pixels]).to(self._device, self._dtype)
        parts = self.model.cross_attention.keys_values(self.model.encode(pictures))
        media = [[one_after_the_other(layer[None]) for layer in part] for part in parts]
        last = [[layer[-1:].contiguous() for layer in part] for part in parts]
        ids = torch.tensor([case["input_ids"]], device=self._device)
        index, length = (ids == workload["tokens"]["image"]).cumsum(1), ids.shape[1]
        positions = torch.arange(length + tokens, device=self._device)[None]
        cache = FixedCache(self._config, length + tokens, self._device, self._dtype)
        token = self.forward(ids, positions[:, :length], index, media, cache)
        for place in range(length, length + tokens):
            chosen.append(int(token))  # waits for the device
            times.append(time.perf_counter() - start)
            if len(chosen) < tokens:
                token = self.step(token, positions[:, place : place + 1], torch.ones_like(token), last, cache)
        return Answer(tuple(chosen), tuple(times))

    def forward(
        self, ids: Tensor, positions: Tensor, index: Tensor, media: list[list[Tensor]], cache: FixedCache
    ) -> Tensor:
        """The likeliest next token [1, 1]."""
        wanted = torch.full((1, 1), ids.shape[1] - 1, device=ids.device)
        return self.model.decode(ids, positions, index, *media, cache, wanted).argmax(-1)


def main() -> None:
    parser = device_options(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a preset, or openflamingo-small")
    options = parser.parse_args()
    plan = plan_of_device(options, torch.get_num_threads())
    workload, cases = wanted(options, plan)
    loop = Loop(shape_of(options.model), options.device, DTYPES[options.dtype])
    emit({"torch": torch.__version__})
    if options.compile:
        loop.step = torch.compile(loop.forward, backend=options.compile)
        emit({"compile_s": loop.answer(cases[0], workload, 3).times[-1]})
    emit_cases(cases, lambda case, tokens: loop.answer(case, workload, tokens), plan)


if __name__ == "__main__":
    main()
