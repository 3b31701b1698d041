"""The record of a run: its wandb run, its file of metrics, its sample pages, and the guard against secrets in them."""
