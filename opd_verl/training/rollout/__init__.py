"""The rollout half of a step: an agent loop that hands responses to the teacher, and responses taken from the data."""
