"""The settings: the typed `opd:` section, how verl's config and a command's settings are composed, and their errors."""
