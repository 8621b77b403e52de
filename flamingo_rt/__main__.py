"""``python -m flamingo_rt``.

Python itself puts the working folder first on the path for that, and has looked for this package there by now. What is
imported from here on does not come from it.
"""

import os
import sys

if __name__ == "__main__":
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)) and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    from flamingo_rt.cli import main

    main()
