"""Recipes and clusters for `python -m verl.trainer.sft_trainer`."""
