"""From teacher scores to a weight and an advantage per response token: pure functions of tensors, torch only."""
