"""Data preparation: known sets to verl parquet, de-duplication, subsets, templates, contexts and SFT files.

`python -m opd_verl.data --help` lists the commands.
"""
