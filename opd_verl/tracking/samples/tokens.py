"""The text of each token of a response, also if a character is spread over several tokens."""

from collections.abc import Callable, Iterable, Sequence

INCOMPLETE = "\ufffd"
SHOWN_TOP = 8
"""Number of the teacher's most likely ids that are shown."""
LONGEST = 4
"""Bytes of the longest UTF-8 character: it has at most so many tokens; a longer run consists of broken bytes."""


def token_texts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """One text per token; joined they are the decoded response.

    A character's text belongs to its last token, and its other tokens have none; bytes that never become a character
    end as U+FFFD. Every token is decoded with its predecessor, since some tokenizers drop a leading space.
    (`tokenizers.DecodeStream` does the same, but only for fast tokenizers, and it raises on some byte sequences.)
    """
    every, texts = list(ids), []
    start = shown = 0  # ids[start:shown] is context whose text was returned already
    before = ""
    for end in range(1, len(every) + 1):
        text = decode(every[start:end])
        open_character = text.endswith(INCOMPLETE) and end - shown < LONGEST and end < len(every)
        texts.append("" if open_character else text[len(before) :])
        if not open_character:
            start, shown = shown, end
            before = decode(every[start:shown])
    return texts


def top_tokens(
    ids: Iterable[Sequence[int]], log_q: Iterable[Sequence[float]], decode: Callable[[list[int]], str]
) -> list[list[tuple[str, float]]]:
    """The teacher's most likely tokens at each position, from ids and log-probs [R, K] in descending order."""
    return [
        [(decode([int(token)]), float(value)) for token, value in zip(row[:SHOWN_TOP], values[:SHOWN_TOP], strict=True)]
        for row, values in zip(ids, log_q, strict=True)
    ]
