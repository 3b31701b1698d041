"""The planner: a run's memory, time and traffic per device, from its config alone, before a device is touched."""
