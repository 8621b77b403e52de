"""The ``torch`` backend on a GPU: the PyTorch model with its weights, cache and steps in device memory.

The computation is that of `torch_backend.TorchBackend`, in a form whose shapes depend on the shapes of its inputs
alone: a step attends to every slot of the cache and masks those that hold no token of its row, so it is captured once
for each number of rows and each shape of the media, and its tensors stay where they are (`static_step.py`). Prompts and
pictures run once each, as they are, and attend to the filled slots alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_rt.backend import Backend, Cache, GreedySteps
from flamingo_rt.contract import (
    CACHE_LENGTH,
    FEATURES,
    INPUT_IDS,
    LANGUAGE_MODEL,
    LOGITS,
    LOGITS_INDEX,
    MEDIA_INDEX,
    NEXT_LOGPROB,
    NEXT_TOKEN,
    PIXEL_VALUES,
    RESAMPLER,
    VISION_ENCODER,
    GraphSpec,
    Limits,
    graph_specs,
    layer_parts,
    media_name,
    past_name,
    past_of,
)
from flamingo_rt.errors import UsageError
from flamingo_rt.model.external_encoder import ExternalEncoder
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language_model import ScoreBias
from flamingo_rt.model.static_step import StaticStep, TensorGreedySteps
from flamingo_rt.model.tensor_cache import CacheBuffer, CachePool, TensorCache
from flamingo_rt.model.torch_backend import TorchBackend
from flamingo_rt.model.torch_device import CPU, Device, open_device, usual_dtype
from flamingo_rt.model.torch_probe import TorchProbe

Tensors = Mapping[str, Tensor]


def open_torch_backend(
    load: Callable[..., Flamingo], device: str, dtype: torch.dtype | None = None, cuda_graphs: bool = True
) -> Backend:
    """The torch backend of a model on a device (`open_device`). ``load`` reads the model, given the type of its
    numbers, the device they lie on, and the bytes that are free there (`StoredModel.load`); ``dtype`` is that type, by
    default `usual_dtype`.

    Raises `UsageError` for an unknown device, or half precision on the CPU, `DependencyError` where the device cannot
    be used, and `DataError` when it has too little memory.
    """
    if device == CPU:
        if dtype not in (None, torch.float32):
            raise UsageError("half precision is for GPUs: on the CPU the torch backend computes in fp32")
        return TorchBackend(load())
    opened = open_device(device, cuda_graphs)
    with opened.running("loading the model"):
        return DeviceBackend(load(dtype or usual_dtype(opened), opened.place, opened.available_bytes()), opened)


class SlotAttend:
    """`Attend` over the first ``slots`` slots of cache tensors [B, Hk, C, d], which are written in place. Without a
    look at any number, so that a step can be captured."""

    def __init__(self, past: Sequence[Tensor], slots: int) -> None:
        device = past[0].device
        self._past, self._slots = past, torch.arange(slots, device=device)
        self._rows = torch.arange(len(past[0]), device=device)[:, None]

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        slots, width = len(self._slots), query.shape[-1]
        keys, values = (past[..., :width] for past in self._past[2 * layer : 2 * layer + 2])
        for cached, new in ((keys, key), (values, value)):
            cached[self._rows, :, positions] = new  # [B, T, Hk, d]
        mask = self._slots <= positions[:, None, :, None]  # [B, 1, T, slots]
        if bias is not None:
            scores = bias(bias_query, positions, slots).to(query.dtype)
            mask = torch.where(mask, scores, torch.finfo(query.dtype).min)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), keys[:, :, :slots], values[:, :, :slots], attn_mask=mask,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.transpose(1, 2)


class DeviceBackend:
    """Runs a model on a `Device`, which its weights are on already."""

    limits: Limits | None = None
    reads_device_arrays = False
    continues_batches = True
    steps_ahead = 1  # runs while the host reads the result of the previous step

    def __init__(self, model: Flamingo, device: Device) -> None:
        """The type of the weights is the one that everything is computed in."""
        self.model, self._device = model.eval().requires_grad_(False), device
        self._dtype = next(model.language.parameters()).dtype
        self.specs: dict[str, GraphSpec] = graph_specs(model.config, str(self._dtype).removeprefix("torch."))
        self.name = f"torch-{device.place.type}"
        self._pool = CachePool(device, self.specs[LANGUAGE_MODEL])
        self._lock = threading.RLock()  # one run at a time: a step's tensors belong to whoever has the cache

    def available_bytes(self) -> int | None:
        """See `Backend.available_bytes`; the unused cache is counted."""
        free = self._device.available_bytes()
        return None if free is None else free + self._pool.unused_bytes

    def device_probe(self) -> TorchProbe:
        """See `Backend.device_probe`."""
        return TorchProbe(self._device, self._dtype)

    def cache(self, rows: int, capacity: int) -> TensorCache:
        """See `Backend.cache`. Raises `DataError` when the device has too little memory."""
        with self._lock:
            return self._pool.open(rows, capacity)

    def bind(
        self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> Callable[[], None]:
        """See `Backend.bind`. Raises `DataError` for too little memory."""
        what = f"running the {graph}"
        sources, targets = (
            {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
            for given in (inputs, outputs)
        )
        changing = {name: array for name, array in sources.items() if name not in constant}
        with self._lock, self._device.running(what):
            step = self._step(graph, inputs, repeats=bool(constant))
            step.load({name: array for name, array in sources.items() if name in constant})

        def call() -> None:
            with self._lock, self._device.running(what):
                step.load(changing)
                step.run()
                step.read(targets)

        return call

    def bind_greedy_steps(
        self, cache: Cache, inputs: Mapping[str, Any], outputs: Mapping[str, Any], constant: Collection[str] = ()
    ) -> GreedySteps:
        """See `Backend.bind_greedy_steps`."""
        with self._lock, self._device.running("preparing steps of the language model"):
            step = self._step(LANGUAGE_MODEL, {**inputs, **cache.buffers()}, repeats=True)
            step.load({name: array for name, array in inputs.items() if name in constant})
            return TensorGreedySteps(self._device, step, self.steps_ahead)

    def _step(self, graph: str, inputs: Mapping[str, Any], repeats: bool) -> StaticStep:
        """The computation of a graph for inputs of these shapes. One that ``repeats`` over a whole cache is kept with
        the cache, and found again."""
        past = inputs[past_name(0, "key")] if graph == LANGUAGE_MODEL else None
        owner = past.owner if isinstance(past, CacheBuffer) and repeats else None
        if owner is None:
            return self._made(graph, inputs, repeats=False)
        shapes = tuple((name, array.shape) for name, array in inputs.items() if isinstance(array, np.ndarray))
        return owner.step(shapes, partial(self._made, graph, inputs, repeats=True))

    def _made(self, graph: str, inputs: Mapping[str, Any], repeats: bool) -> StaticStep:
        """New tensors for the inputs and outputs of a graph; a cache is used where it is."""
        spec, device = self.specs[graph], self._device
        tensors = {
            each.name: inputs[each.name].tensor if isinstance(inputs[each.name], CacheBuffer)
            else device.zeros(inputs[each.name].shape, getattr(torch, each.dtype)) for each in spec.inputs
        }
        sizes = {
            letter: size for each in spec.inputs
            for letter, size in zip(each.shape, tensors[each.name].shape, strict=True) if isinstance(letter, str)
        }
        outputs = {
            each.name: tensors[past_of(each.name)] if "C" in each.shape
            else device.zeros(each.resolve(sizes), getattr(torch, each.dtype)) for each in spec.outputs
        }
        # No reference to this object: with one, memory would wait for Python's collector of circles.
        compute: Callable[[], None]
        if graph == LANGUAGE_MODEL:
            lengths = None if repeats else inputs[CACHE_LENGTH]
            compute = partial(_language_model, self.model, tensors, outputs, lengths)
        else:
            compute = partial(_ENCODERS[graph], self.model, device, tensors, outputs)
        return StaticStep(device, tensors, outputs, compute, repeats)


def _vision_encoder(model: Flamingo, device: Device, inputs: Tensors, outputs: Tensors) -> None:
    pixels, features = inputs[PIXEL_VALUES], outputs[FEATURES]
    if not isinstance(model.vision, ExternalEncoder):  # which computes in float32, on the CPU
        pixels = pixels.to(features.dtype)
    with device.precise():
        features.copy_(model.vision(pixels))


def _resampler(model: Flamingo, device: Device, inputs: Tensors, outputs: Tensors) -> None:
    keys, values = model.cross_attention.keys_values(model.resampler(inputs[FEATURES]))
    tensors = {"key": keys, "value": values}
    for layer, part in layer_parts(len(keys)):
        outputs[media_name(layer, part)].copy_(tensors[part][layer])


_ENCODERS = {VISION_ENCODER: _vision_encoder, RESAMPLER: _resampler}


def _language_model(model: Flamingo, inputs: Tensors, outputs: Tensors, lengths: np.ndarray | None) -> None:
    """Run the language model. ``lengths`` int64 [B] are the tokens cached in each row, in host memory; without them
    every slot of the cache is attended to."""
    config = model.config
    past = [inputs[past_name(layer, part)] for layer, part in layer_parts(config.language.layers)]
    media = [inputs[media_name(layer, part)] for layer, part in layer_parts(len(config.cross_layers))]
    input_ids, tokens = inputs[INPUT_IDS], inputs[INPUT_IDS].shape[1]
    slots = past[0].shape[2] if lengths is None else int(lengths.max()) + tokens
    positions = inputs[CACHE_LENGTH][:, None] + torch.arange(tokens, device=input_ids.device)
    logits = model.decode(
        input_ids, positions, inputs[MEDIA_INDEX], media[::2], media[1::2], SlotAttend(past, slots),
        inputs[LOGITS_INDEX],
    ).float()
    outputs[LOGITS].copy_(logits)
    outputs[NEXT_TOKEN].copy_(logits.argmax(-1))
    outputs[NEXT_LOGPROB].copy_(logits.log_softmax(-1).amax(-1))
