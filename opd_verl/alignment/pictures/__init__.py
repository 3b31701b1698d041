"""Pictures of an alignment."""
