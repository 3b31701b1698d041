"""A task reward between 0 and 1 for wrong answers too: how many of the sum's digits the response shares."""

from difflib import SequenceMatcher


def compute_score(data_source: str, solution_str: str, ground_truth: str, **kwargs: object) -> float:
    """Similarity of response and ground truth, 0 to 1; verl calls this function."""
    return SequenceMatcher(None, solution_str, ground_truth).ratio()
