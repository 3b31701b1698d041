"""Objectives as pure functions of tensors; this package knows torch only.

Symbols: B sequences, R response tokens, K support size; `log_p` student, `log_q` teacher, natural logs (nats).
"""
