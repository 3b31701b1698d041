"""Configs of `python -m opd_verl.pipeline`."""
