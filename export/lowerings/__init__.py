"""Forms of the three graphs, one for each kind of runtime."""
