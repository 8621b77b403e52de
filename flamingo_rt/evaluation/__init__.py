"""Evaluation: how often a model's answers are right."""
