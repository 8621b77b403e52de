"""GGUF files that tests read, and the answers of two other readers of them: an environment of its own runs this."""
