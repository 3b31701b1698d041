"""Runs several trainings in a row, each on the models of earlier ones, and compares all models in one table."""
