"""The preflight on a Ray cluster: `python -m opd_verl.nodes OVERRIDES` looks at every node before the job does."""
