"""Helpers that know nothing of distillation: files, hub names, reachability of servers, plots and Markdown tables."""
