"""Objectives: losses per token as pure functions of tensors, torch only. README.md has the formulas.

Symbols: B sequences, R response tokens, K support size; `log_p` student, `log_q` teacher, natural logs (nats).
"""
