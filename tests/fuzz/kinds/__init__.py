"""Every kind of input, by name."""

from __future__ import annotations

from .. import everything  # noqa: F401 - before the first fork
from ..kind import Kind
from .bundles import BUNDLES
from .calibration import CALIBRATION
from .checkpoints import CHECKPOINTS
from .clips import CLIPS
from .command_line import COMMAND_LINE
from .encoders import ENCODERS
from .gguf import GGUF
from .importing import IMPORTING
from .pictures import PICTURES
from .prompts import PROMPTS
from .tasks import TASKS
from .tokenizers import TOKENIZERS
from .towers import TOWERS
from .training_data import TRAINING_DATA
from .training_state import TRAINING_STATE
from .weights import WEIGHTS

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        PICTURES, CLIPS, PROMPTS, BUNDLES, TOKENIZERS, CHECKPOINTS, WEIGHTS, IMPORTING, ENCODERS, CALIBRATION,
        TRAINING_DATA, TRAINING_STATE, TOWERS, TASKS, COMMAND_LINE, GGUF,
    )
}
