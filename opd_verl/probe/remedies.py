"""Remedies that a verdict names, each with the paper that tried this remedy."""

from collections.abc import Iterator, Mapping

from opd_verl.metrics.estimate import Estimate

MASK = "mask all but the top-20% entropy positions: opd.tokens.masks=[top_student_entropy] (Capacity table 6)"
MASKED_GAIN = "the mask removes losses but brings no gain"
OTHER = "another teacher: this teacher after GRPO (Capacity table 3), or a more accurate teacher on these prompts"
MORE_PROMPTS = "more prompts (rollouts=...): they narrow the interval"
COLD_START = "a cold start on the teacher's rollouts first: pipeline=cold_start_then_opd (Rethinking)"
ALIGNED = "teacher-aligned prompts: python -m opd_verl.data template (Rethinking)"
SHORTER = "shorter responses, or opd.tokens.truncated=mask"
LOW_OVERLAP = 0.72
"""Overlap ratio at which Rethinking's successful runs begin."""
TRUNCATED = 0.1
"""Share of cut rollouts from which the probe names a remedy; the number is ours."""
LONG = 7000
"""Tokens of a response at which Rethinking's best range, 3K to 7K, ends."""


def further(values: Mapping[str, Estimate]) -> Iterator[str]:
    """Remedies that help with every verdict."""
    overlap, cut, length = (values.get(name) for name in ("overlap_ratio", "truncated_share", "response_length"))
    if overlap is not None and overlap.value < LOW_OVERLAP:
        yield f"overlap ratio {overlap.value:.0%}; successful runs begin at {LOW_OVERLAP:.0%}: {COLD_START}"
    if cut is not None and cut.value > TRUNCATED:
        yield f"{cut.value:.0%} of the rollouts are cut at the limit: raise it, or {SHORTER}"
    elif length is not None and length.value > LONG:
        yield f"responses of {length.value:.0f} tokens: {SHORTER} (Rethinking: 3K to 7K)"
