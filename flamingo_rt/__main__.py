"""``python -m flamingo_rt``.

Python itself puts the working folder first on the path for that, and has looked for this package there by now. What is
imported from here on does not come from it.
"""

import os
import sys


def _leave_working_folder() -> None:
    """Take what ``python -m`` put first off the path; with -P and -I it put nothing there."""
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
