"""The forward passes of one teacher replica: batches, body, LM head, kept states. Knows transformers, not verl."""
