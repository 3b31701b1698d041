"""A few rollouts of a step to look at: their tokens, coloured by r_t."""
