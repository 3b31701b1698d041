"""The teacher: scores every sampled token of a rollout early, and answers questions about it later."""
