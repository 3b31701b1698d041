"""Hydra configs of opd_verl: `recipe=` and `cluster=` choose a file of the folder of that name."""
