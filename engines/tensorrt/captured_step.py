"""A graph launched by TensorRT with fixed shapes, captured as a CUDA graph on its second launch and replayed from then
on.

The first launch sets the shapes and addresses of the execution context. The second is captured, which is worth it for
steps only (`BoundArrays.repeated`): a prompt is launched once. When another run has used the same context in between,
the captured graph is no longer valid, and the step starts again.
"""

from __future__ import annotations

from flamingo_rt.engines.gpu.bound_arrays import BoundArrays
from flamingo_rt.engines.gpu.cuda import Cuda, Graph
from flamingo_rt.engines.tensorrt.tensorrt_session import Profile
from flamingo_rt.errors import DataError


class CapturedStep:
    """A `Launch` of a graph whose shapes stay the same."""

    def __init__(self, cuda: Cuda, profile: Profile, arrays: BoundArrays) -> None:
        self._cuda, self._profile, self._arrays = cuda, profile, arrays
        self._use = object()  # marks the profile as set up for this; the profile must not keep this, and so the cache
        self._captured: Graph | None = None
        self._may_capture = arrays.repeated

    def __call__(self) -> None:
        """Put the step on the stream: as it is the first time, then as a CUDA graph where it can be captured."""
        if self._profile.user is not self._use:  # the first launch, or another run has used the profile since
            self._captured = None
            self._set_up()
            self._enqueue()
            return
        if self._captured is None and self._may_capture:
            self._captured = self._capture()
        if self._captured is not None:
            self._captured.launch()
        else:
            self._enqueue()

    def _set_up(self) -> None:
        arrays, profile = self._arrays, self._profile
        profile.use(self._use, arrays.shapes)
        for name, expected in arrays.output_shapes.items():
            if profile.shape(name) != expected:
                raise profile.failure(f"writes {name} as {list(profile.shape(name))}, not {list(expected)}")
        profile.bind({**arrays.addresses, **arrays.cache_addresses})

    def _enqueue(self) -> None:
        self._arrays.upload()
        self._profile.run(self._cuda.stream)
        self._arrays.download()

    def _capture(self) -> Graph | None:
        """A CUDA graph of one step. None, now and later, where it cannot be captured."""
        captured = None
        if self._profile.capturable(self._cuda.stream):
            try:
                captured = self._cuda.capture(self._enqueue)
            except (RuntimeError, DataError):
                captured = None
        self._may_capture = captured is not None
        return captured
