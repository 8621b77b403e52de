"""Commands and environments for Python child processes that import nothing from their working folder.

``python -m`` and ``python -c`` put the working folder first on the path, and so does an empty entry of ``PYTHONPATH``.
In a folder of downloaded files they would run a ``numpy/__init__.py`` that lies there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# Python 3.10 has no -P. Its -c imports nothing but sys before this code mends the path (3.13 imports linecache first).
_MODULE_WITHOUT_WORKING_FOLDER = (
    "import sys; sys.path[:] = filter(None, sys.path); del sys.argv[0]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Command that runs a module with this Python, like ``python -m`` without the working folder on its path.

    Start it in `child_environment`. Raises `OSError` where this process does not know its interpreter.
    """
    if not sys.executable:
        raise OSError("this process does not know which Python interpreter runs it")
    how = ("-P", "-m") if sys.version_info >= (3, 11) else ("-c", _MODULE_WITHOUT_WORKING_FOLDER)
    return (sys.executable, *how, module, *arguments)


def child_environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables for a Python process: those of this process, with ``added`` ones on top.

    ``PYTHONPATH`` loses entries that are the working folder; other relative entries become absolute.
    """
    environment = dict(os.environ)
    entries = filter(None, environment.pop("PYTHONPATH", "").split(os.pathsep))
    kept = [_absolute(entry) for entry in entries if not _is_working_folder(entry)]
    return environment | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {}) | dict(added or {})


def _is_working_folder(entry: str) -> bool:
    try:
        return os.path.samefile(entry, os.curdir)
    except OSError:  # one of them is not there
        return False


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except OSError:  # the working folder is gone: a relative entry finds nothing
        return entry
