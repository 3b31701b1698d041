"""Runs several trainings in a row, each on models of earlier trainings, and compares all models in one table."""
