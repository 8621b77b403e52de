"""A vision encoder that came as an ONNX graph: frozen, and run by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flamingo_rt.config import ExternalVisionConfig
from flamingo_rt.engines.encoder_session import EncoderSession
from flamingo_rt.errors import DataError


class ExternalEncoder(nn.Module):
    """pixel_values [N, 3, H, W] -> features [N, S, width], on the CPU and in float32, without gradients.

    The only tensor is ``graph``, the graph's bytes, uint8 [graph_bytes]. A session is made of it when it first runs,
    and again when it was replaced.
    """

    graph: Tensor

    def __init__(self, config: ExternalVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("graph", torch.zeros(config.graph_bytes, dtype=torch.uint8))
        self.blocks = nn.ModuleList()  # no layers that ranks could divide
        self._session: EncoderSession | None = None
        self._made_of: tuple[Tensor, int] | None = None  # the graph, and how often it had been written

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session out of copies, which make their own."""
        return {**self.__dict__, "_session": None, "_made_of": None}

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pictures. Raises `DataError` where the graph cannot be run, or gives another shape than the
        configuration says."""
        features = torch.from_numpy(self._current_session().run(pixel_values.float().cpu().numpy()))
        shape = (len(pixel_values), self.config.feature_count, self.config.width)
        if tuple(features.shape) != shape:
            raise DataError(f"the external encoder gives features {list(features.shape)}, and its config.json says "
                            f"{list(shape)}: import the encoder again")
        return features.to(pixel_values.device, pixel_values.dtype)

    def _current_session(self) -> EncoderSession:
        """The session of the graph as it is now."""
        graph = self.graph
        written = 0 if graph.is_inference() else graph._version  # inference tensors do not count it
        if self._session is None or self._made_of is None or self._made_of[0] is not graph or (
            self._made_of[1] != written
        ):
            content = graph.cpu().numpy().tobytes()
            self._session = EncoderSession(content, "the external encoder's graph", torch.get_num_threads())
            self._made_of = graph, written
        return self._session
