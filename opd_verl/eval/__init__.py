"""Measures models on benchmarks: sampled with vLLM, judged, with confidence intervals, resumable."""
