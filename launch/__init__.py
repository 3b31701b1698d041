"""Starts a run on one node, a Ray cluster, Slurm or Kubernetes."""
