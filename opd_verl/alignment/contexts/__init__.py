"""Demonstrations and summaries that a self-distilling teacher reads: sampled, counted and screened (Unmasking E.9)."""
