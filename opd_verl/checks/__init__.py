"""What refuses a bad setting before Ray starts: `preflight` runs the checks of the config and of the models' files."""
