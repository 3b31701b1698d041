"""Hydra config of `python -m opd_verl.alignment`; a folder of its own, since `teacher` is a group of the recipes."""
