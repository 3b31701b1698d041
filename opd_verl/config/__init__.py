"""Settings: the typed `opd:` section, the composition of verl's and our commands' configs, and their errors."""
