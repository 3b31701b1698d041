"""Scripts that start opd_verl on one node, a Ray cluster, Slurm and Kubernetes."""
