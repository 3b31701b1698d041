"""What a run needs of its devices, before one of them is touched: `python -m opd_verl.plan`."""
