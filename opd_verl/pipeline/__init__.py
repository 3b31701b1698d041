"""Several trainings in a row: `python -m opd_verl.pipeline pipeline=grpo_then_opd`."""
