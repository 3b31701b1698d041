"""Pages that show a few rollouts of a step, their tokens coloured by r_t."""
