"""The limits of a teacher: its positions, the ids that it has embeddings for, the ids that it normalises over."""

from dataclasses import dataclass

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import fed_tokens


@dataclass(frozen=True)
class ModelLimits:
    """The lengths and ids that a model can score."""

    vocab_limit: int
    """Token ids are below this limit. Padded vocabularies have more embeddings than tokens."""
    embeddings: int
    """Rows of the embedding matrix."""
    max_positions: int | None
    """None where the model has no limit."""

    def check(self, request: ScoreRequest, new_tokens: int = 0) -> None:
        """Raises ValueError if the model cannot score the request: too long, or ids it has no embedding for.

        new_tokens: tokens that an inference server must generate behind the response. The server then reads the last
        response token too; the scorer does not read this token.
        """
        prompt, response = request.prompt_ids, request.response_ids
        fed = len(prompt) + len(response) + new_tokens if new_tokens else fed_tokens(request)
        if self.max_positions is not None and fed > self.max_positions:
            raise ValueError(
                f"{request.key}: prompt of {len(prompt)} + response of {len(response)} tokens exceeds the teacher's "
                f"max_position_embeddings={self.max_positions}; shorten data.max_prompt_length or "
                "data.max_response_length, or use a teacher with a longer context"
            )
        if prompt.min() < 0 or prompt.max() >= self.embeddings:
            raise ValueError(f"{request.key}: prompt ids outside the teacher's {self.embeddings} embeddings")
        if len(response) and (response.min() < 0 or response.max() >= self.vocab_limit):
            raise ValueError(
                f"{request.key}: response ids {response.min()}..{response.max()} outside 0..{self.vocab_limit - 1} "
                "(vocab_limit); student and teacher must share the tokenizer and the sampler must not leave it"
            )
