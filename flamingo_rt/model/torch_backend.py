"""The ``torch`` backend on the CPU: the contract's three graphs computed by the PyTorch model itself, from a
checkpoint.

Slow, and the oracle for every other backend: the same buffers, the same loop, no exporter in between. On a GPU it is
`device_backend.DeviceBackend`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_rt.backend import HostBackend
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
    graph_specs,
    layer_parts,
    media_name,
    past_name,
    present_name,
)
from flamingo_rt.model.flamingo import Flamingo
from flamingo_rt.model.language_model import ScoreBias
from flamingo_rt.model.torch_device import tensor_of

NAME = "torch"


class BufferAttend:
    """`Attend` over cache buffers written in place. past: per layer key and value [B, Hk, C, d]; cache_length [B].

    In a cache whose heads are wider than the model's (`cached_head_width`), it uses the first numbers of each head.
    """

    def __init__(self, past: Sequence[Tensor], cache_length: Tensor) -> None:
        self.past, self.cache_length = past, cache_length

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, positions: Tensor,
        bias: ScoreBias | None, bias_query: Tensor,
    ) -> Tensor:
        width = query.shape[-1]
        keys, values = (past[..., :width] for past in self.past[2 * layer : 2 * layer + 2])
        tokens = query.shape[1]
        for row, start in enumerate(self.cache_length.tolist()):
            keys[row, :, start : start + tokens] = key[row].transpose(0, 1)
            values[row, :, start : start + tokens] = value[row].transpose(0, 1)
        total = int(self.cache_length.max()) + tokens
        allowed = torch.arange(total) <= positions[:, None, :, None]  # [B, 1, T, total]
        scores = torch.zeros(()) if bias is None else bias(bias_query, positions, total)
        mask = torch.where(allowed, scores, torch.finfo(query.dtype).min)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), keys[:, :, :total], values[:, :, :total], attn_mask=mask,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.transpose(1, 2)


class TorchBackend(HostBackend):
    """Runs a model in memory behind the same interface as the compiled engines; buffers are numpy arrays."""

    name = NAME
    # continues_batches is False, though it could: one row at a time takes less memory.

    def __init__(self, model: Flamingo) -> None:
        super().__init__(graph_specs(model.config))
        self.model = model.eval()

    def bind(
        self, graph: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray],
        constant: Collection[str] = (),
    ) -> Callable[[], None]:
        """A call that reads ``inputs`` and writes ``outputs`` in place, each time it is made."""
        sources, targets = ({name: tensor_of(array) for name, array in arrays.items()} for arrays in (inputs, outputs))

        @torch.no_grad()
        def call() -> None:
            for name, tensor in self._computed(graph, sources).items():
                if name in targets and tensor.data_ptr() != targets[name].data_ptr():
                    targets[name].copy_(tensor)

        return call

    def _computed(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs of a graph."""
        compute = {
            VISION_ENCODER: self._vision_encoder, RESAMPLER: self._resampler, LANGUAGE_MODEL: self._language_model
        }[graph]
        return compute(inputs)

    def _vision_encoder(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {FEATURES: self.model.vision(inputs[PIXEL_VALUES])}

    def _resampler(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        keys, values = self.model.cross_attention.keys_values(self.model.resampler(inputs[FEATURES]))
        tensors = {"key": keys, "value": values}
        return {media_name(layer, part): tensors[part][layer] for layer, part in layer_parts(len(keys))}

    def _language_model(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        config = self.model.config
        parts = layer_parts(config.language.layers)
        past = [inputs[past_name(layer, part)] for layer, part in parts]
        media = [inputs[media_name(layer, part)] for layer, part in layer_parts(len(config.cross_layers))]
        input_ids, cache_length = inputs[INPUT_IDS], inputs[CACHE_LENGTH]
        positions = cache_length[:, None] + torch.arange(input_ids.shape[1])
        logits = self.model.decode(
            input_ids, positions, inputs[MEDIA_INDEX], media[::2], media[1::2],
            BufferAttend(past, cache_length), inputs[LOGITS_INDEX],
        )
        return {
            LOGITS: logits,
            NEXT_TOKEN: logits.argmax(-1),
            NEXT_LOGPROB: logits.log_softmax(-1).amax(-1),
            **{present_name(layer, part): tensor for (layer, part), tensor in zip(parts, past, strict=True)},
        }

