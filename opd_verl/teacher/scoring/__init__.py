"""One teacher's forward passes: batches, body, LM head, kept states. Knows transformers; neither Ray nor verl."""
