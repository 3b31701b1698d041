"""Reproduces the papers' findings at a small scale, and measures what the alignment and a training cost."""
