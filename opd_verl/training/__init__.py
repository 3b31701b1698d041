"""The training step that `main_ppo` runs under a recipe with a teacher: rollout, teacher scores, advantage, update."""
