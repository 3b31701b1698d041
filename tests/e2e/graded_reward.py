"""A task reward that a student which solves nothing can still win: how much of the sum's digits its answer shares."""

from difflib import SequenceMatcher


def compute_score(data_source: str, solution_str: str, ground_truth: str, **kwargs: object) -> float:
    """verl's reward function: similarity of response and ground truth, 0..1."""
    return SequenceMatcher(None, solution_str, ground_truth).ratio()
