"""``python -m flamingo_rt``.

``python -m`` puts the working folder first on the path, and Python has already looked for this package there. The
folder is taken off the path again before anything else is imported.
"""

import os
import sys


def _leave_working_folder() -> None:
    """Take the working folder off the path, where ``python -m`` put it; with -P and -I it did not."""
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return
    try:
        working_folder = os.getcwd()
    except OSError:  # it is gone
        working_folder = ""
    if sys.path[0] in ("", working_folder):
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_folder()
    from flamingo_rt.cli import main

    main()
