"""What `main_ppo` runs under a recipe with a teacher, in a step's order: rollout, teacher scores, advantage, update."""
