"""``python -m flamingo_rt``."""

from flamingo_rt.cli import main

if __name__ == "__main__":
    main()
