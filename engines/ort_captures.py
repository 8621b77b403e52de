"""Decode steps that ONNX Runtime captures as CUDA graphs: the annotation id of each run.

A session that was made with the provider option ``enable_cuda_graph`` does with a run as its option ``gpu_graph_id``
says. -1: it is neither captured nor replayed; prompts and pictures run so. Any other number: the first run of it is
made several times, as it is, captured, and replayed; each later one replays what was captured, whatever is bound then.
So:

- Runs of one id must have equal shapes, and equal addresses of everything that is bound. 0 is ONNX Runtime's own.
- A step must leave the same when it is made several times. It does: it writes the keys and values of its tokens to
  their places in the cache, the same ones each time.
- Nothing may be read in host memory that changes from step to step: a replay does not read it again.
- Graphs are captured for each thread that runs the session, and kept as long as the session: that
  `release_captured_graph` frees one of CUDA's is not known. So there are at most `MOST_CAPTURED`; other steps run as
  they are.

ONNX Runtime makes no such session of a graph with control flow, or with nodes on the CPU that are fed from the GPU. A
kernel that allocates memory or waits while it is captured is an error of the first run.

Sources: onnxruntime-gpu 1.31.1.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Hashable

ENABLE, GRAPH_ID = "enable_cuda_graph", "gpu_graph_id"
SKIPPED = "-1"
MOST_CAPTURED = 8  # a captured graph takes some MB
REFUSALS = ("graph capture feature", "cuda graph feature")  # in errors of a session that is made; the older one second

logger = logging.getLogger(__name__)


class CapturedSteps:
    """Annotation ids of the steps of one session."""

    def __init__(self, most: int = MOST_CAPTURED) -> None:
        """At most ``most`` ids are given."""
        self._most = most
        self._ids: dict[Hashable, str] = {}
        self._succeeded: set[str] = set()
        self._off = False

    def id_of(self, bound: Hashable) -> str:
        """The id of a step; ``bound`` are the shapes and addresses of all that is bound. `SKIPPED` for one that is not
        captured."""
        if self._off:
            return SKIPPED
        key = (threading.get_ident(), bound)
        if key not in self._ids and len(self._ids) < self._most:
            self._ids[key] = str(len(self._ids) + 1)
        return self._ids.get(key, SKIPPED)

    def succeeded(self, graph_id: str) -> None:
        """Note that a run of this id was made."""
        self._succeeded.add(graph_id)

    def gives_up(self, graph_id: str, error: Exception) -> bool:
        """Whether an error of a run with this id may be one of capturing: of the first run. Then no step is captured
        any more, which a warning says, and the run can be made again with the id `SKIPPED`."""
        if graph_id == SKIPPED or graph_id in self._succeeded:
            return False
        self._off = True
        warn_of_plain_steps(str(error))
        return True


def can_capture(lowering: str) -> bool:
    """Whether steps of graphs of a lowering can be captured. Not those of ``ort``, which a warning says."""
    if lowering == "ort":
        warn_of_plain_steps(
            "graphs of --lowering ort read the rows' lengths in host memory; export with --lowering tensorrt, or load "
            "with --no-cuda-graphs"
        )
    return lowering != "ort"


def captured_steps(on_host: Collection[str]) -> CapturedSteps:
    """Ids for the steps of a session that captures; none, with a warning, where it reads inputs in host memory."""
    if not on_host:
        return CapturedSteps()
    warn_of_plain_steps(f"ONNX Runtime reads {', '.join(sorted(on_host))} in host memory")
    return CapturedSteps(most=0)


def refuses_captures(error: Exception) -> bool:
    """Whether ONNX Runtime did not make a session because it could not capture its runs."""
    return any(said in str(error).lower() for said in REFUSALS)


def warn_of_plain_steps(why: str) -> None:
    """Say that steps are not captured."""
    said = " ".join(why.split())
    logger.warning("decode steps are not captured as CUDA graphs, and take longer to start: %s", said[:300])
