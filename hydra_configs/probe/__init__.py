"""Hydra config of `python -m opd_verl.probe`; a folder of its own, since `teacher` is a group of the recipes."""
