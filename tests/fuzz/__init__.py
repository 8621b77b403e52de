"""Fuzzing: damaged and hostile files of every kind that the product reads from strangers, and its command line.

`kinds` says how an input of a kind is made and what reads it, `corpus` has the named cases that were once wrong,
`mutators` change bytes by the rules of their formats. `runner` forks children that run inputs one after the other in a
`sandbox`, within limits of time and memory, and `judge` says which outcomes are findings. ``python -m tests.fuzz``
starts it, ``test_fuzz.py`` is the part of it in every run of the test suite.
"""
