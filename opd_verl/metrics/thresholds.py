"""Thresholds of the papers on entropies, nats. Without torch, for commands that only draw."""

HIGH_ENTROPY = 1.0
"""Entropy from which EOPD 3.1 counts a token as uncertain."""
FORK_ENTROPY = 0.8
"""Teacher entropy from which EOPD's figure 5 measures the forward KL; also the tau of EOPD's gate."""
LOW_ENTROPY = 0.3
"""Student entropy below which a token counts as committed (Capacity 5.3; a top-1 probability of about 0.85)."""
TAUS = (0.4, 0.6, 0.8, 1.0, 1.2)
"""Thresholds of EOPD's gate that the probe compares."""
BIN_WIDTH, BINS = 0.1, 50
"""Width (nats) and number of bins of an entropy histogram; one more bin holds all larger entropies."""
