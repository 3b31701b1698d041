"""Experiments of the papers that need no language model."""
