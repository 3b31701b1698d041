"""One self-contained HTML page about runs: curves, quadrants, depth, entropies, pass@k, tokens."""
