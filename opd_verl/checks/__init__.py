"""Checks of a run's settings, models and data, made before Ray starts: each refusal names the key and a remedy."""
