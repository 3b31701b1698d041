"""Difficulty of a question by the student's pass rate (Unmasking E.9)."""

import numpy as np
from numpy.typing import NDArray

EASY, MEDIUM, HARD, EXTREMELY_HARD = "easy", "medium", "hard", "extremely hard"
BINS = {EASY: "p >= 0.8", MEDIUM: "0.25 <= p < 0.8", HARD: "0 < p < 0.25", EXTREMELY_HARD: "p = 0"}
SOLVABLE = (EASY, MEDIUM, HARD)
"""Extremely hard questions have no correct rollout, so all their success probabilities are 0: they are left out."""


def difficulty(pass_rate: NDArray[np.float64]) -> NDArray[np.str_]:
    """The bin of each pass rate."""
    inside = [pass_rate >= 0.8, pass_rate >= 0.25, pass_rate > 0]
    return np.select(inside, SOLVABLE, default=EXTREMELY_HARD)
