"""An engine bound to arrays whose shapes stay the same. It runs once (vision encoder, resampler, prompts), or it is a
step, which is captured as a CUDA graph on its second run and replayed from then on.

The first run sets the shapes and addresses of the execution context. The second one is captured if the arrays are a
step's (`BoundArrays.repeated`). When another bound engine has used the same context in between, the CUDA graph is no
longer valid, and the next run counts as the first.
"""

from __future__ import annotations

from flamingo_rt.engines.gpu.bound_arrays import BoundArrays
from flamingo_rt.engines.gpu.cuda import Cuda, CudaGraph
from flamingo_rt.engines.tensorrt.tensorrt_session import Profile
from flamingo_rt.errors import DataError


class BoundEngine:
    """A `BoundGraph`: an engine that has no cache, or writes it in place, so that its shapes stay the same."""

    def __init__(self, cuda: Cuda, profile: Profile, arrays: BoundArrays, cuda_graphs: bool = True) -> None:
        """Without ``cuda_graphs`` no run is captured."""
        self._cuda, self._profile, self._arrays = cuda, profile, arrays
        self._user = object()  # stands for this in the profile, which must not keep this, and so the cache
        self._cuda_graph: CudaGraph | None = None
        self._may_capture = cuda_graphs and arrays.repeated

    def enqueue(self) -> None:
        """See `BoundGraph.enqueue`. Raises `DataError` for outputs of other shapes than the arrays', too."""
        if self._profile.user is not self._user:  # the first run, or another bound engine has used the profile since
            self._cuda_graph = None
            self._set_up()
            self._enqueue_parts()
            return
        if self._cuda_graph is None and self._may_capture:
            self._cuda_graph = self._capture()
        if self._cuda_graph is not None:
            self._cuda_graph.enqueue()
        else:
            self._enqueue_parts()

    def _set_up(self) -> None:
        arrays, profile = self._arrays, self._profile
        profile.set_shapes(arrays.shapes)
        for name, expected in arrays.output_shapes.items():
            if profile.shape(name) != expected:
                raise profile.failure(f"writes {name} as {list(profile.shape(name))}, not {list(expected)}")
        profile.bind({**arrays.addresses, **arrays.cache_addresses})
        profile.user = self._user

    def _enqueue_parts(self) -> None:
        self._arrays.upload()
        self._profile.enqueue(self._cuda.stream)
        self._arrays.download()

    def _capture(self) -> CudaGraph | None:
        """Capture one run. Returns None, now and later, where it cannot be captured."""
        captured = None
        if self._profile.capturable(self._cuda.stream):
            try:
                captured = self._cuda.capture(self._enqueue_parts)
            except (RuntimeError, DataError):
                captured = None
        self._may_capture = captured is not None
        return captured
