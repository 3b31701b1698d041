"""Self-distillation contexts: demonstrations, summaries, and whether they help (Unmasking, appendix E.9)."""
