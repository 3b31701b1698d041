"""Experiments that reproduce the papers' findings at a small scale."""
