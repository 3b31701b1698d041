"""The checks of `opd_verl.preflight`: those that read the config alone, and those that read the models' files."""
