"""The rollout half of a step: the agent loop that submits a response to the teacher, and responses of the data set."""
