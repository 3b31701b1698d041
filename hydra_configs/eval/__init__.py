"""Hydra configs of `python -m opd_verl.eval`; a folder of their own, since `teacher` is a group of the recipes."""
