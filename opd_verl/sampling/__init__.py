"""Samples n responses per prompt of a verl-format file with offline vLLM, judges them, and survives being killed."""
