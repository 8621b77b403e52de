"""Changes to valid files: by their bytes, and by the rules of their formats, so that a change gets past the checks of
lengths and sums in front of what it is meant for. Every function takes the `random.Random` that makes its choices."""
