"""Success probabilities on a generation tree: rollouts, estimates, and where more rollouts go. No model is run here."""
