"""Named inputs that were once wrong, kind by kind. Large ones are made, not stored; `files` has what cannot be made
quickly: pictures of a hundred million pixels in a few kilobytes."""

from __future__ import annotations

from pathlib import Path

FILES = Path(__file__).parent / "files"
