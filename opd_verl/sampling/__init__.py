"""Samples n responses per prompt of a verl-format file with offline vLLM, judges them, and resumes after a kill."""
