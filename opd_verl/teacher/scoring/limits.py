"""What a teacher can read at all: its positions, the ids that it has rows for, the ids that it normalises over."""

from dataclasses import dataclass

from opd_verl.teacher.score import ScoreRequest
from opd_verl.teacher.scoring.batching import fed_tokens


@dataclass(frozen=True)
class ModelLimits:
    """vocab_limit: ids of tokens are below it; embeddings: rows; max_positions: None where the model has no limit."""

    vocab_limit: int
    embeddings: int
    max_positions: int | None

    def check(self, request: ScoreRequest, new_tokens: int = 0) -> None:
        """Raises ValueError if the model cannot score the request: too long, or ids it has no row for.

        new_tokens: what an inference server must generate behind prompt and response; the last response token is then
        read too.
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
