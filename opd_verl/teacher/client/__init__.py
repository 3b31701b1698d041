"""The trainer's side of the teacher: starts the replicas, spreads rollouts over them, and collects the scores."""
