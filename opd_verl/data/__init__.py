"""Data files: known sets as verl parquet, de-duplication, rollouts, subsets, templates, contexts, SFT files."""
