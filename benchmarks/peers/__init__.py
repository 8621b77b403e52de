"""Other projects' implementations. Scripts here run in the peers' own environment and import nothing of flamingo_rt."""
