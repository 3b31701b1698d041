"""Where a run is written down: its wandb run, its file of metrics, and what must never be written down."""
