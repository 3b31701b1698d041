"""What is measured, as pure functions of tensors; this package knows torch only."""
