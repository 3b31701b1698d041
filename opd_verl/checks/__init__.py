"""The checks of `opd_verl.preflight`, by what they read: the config alone (`settings`), or the models' files (`models`)."""
