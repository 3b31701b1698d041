"""Files, hub names, ports, plots and Markdown: helpers that know nothing of distillation."""
