"""Measurements of student and teacher, as pure functions of tensors. Torch only; README.md defines each."""
