"""A replica's scorer from its settings, with the newest weights that there are."""

from collections.abc import Callable
from typing import Any

from opd_verl.teacher.scoring.limits import ModelLimits
from opd_verl.teacher.scoring.reader import LocalReader, ModelSpec, Reader
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.server_scorer import ServerScorer
from opd_verl.teacher.settings import TeacherSettings
from opd_verl.teacher.snapshot import current_snapshot


def load_scorer(
    model_path: str, settings: TeacherSettings, load: Callable[[ModelSpec], Reader] = LocalReader.load
) -> Scorer:
    """As `Scorer.from_pretrained`; where the settings name a newer snapshot of the weights, with these.

    A colocated teacher stays in host memory, and has still to be probed.
    """
    scorer = Scorer.from_pretrained(
        model_path,
        vocab_limit=settings.vocab_limit,
        dtype=settings.dtype,
        device="cpu" if settings.colocate else settings.device,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        temperature=settings.temperature,
        max_tokens_per_batch=settings.max_tokens_per_batch,
        chunk_rows=settings.chunk_rows,
        load=load,
        probe=not settings.colocate,
    )
    if snapshot := current_snapshot(settings.weights_pointer):
        scorer.reader.take(snapshot)
    return scorer


def server_scorer(model_path: str, settings: TeacherSettings, server: Any) -> ServerScorer:
    """A scorer that asks `server`, the Ray actor of one of verl's inference servers; here only the config is read."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model_path).get_text_config()
    vocab_limit = settings.vocab_limit or len(AutoTokenizer.from_pretrained(model_path))
    limits = ModelLimits(vocab_limit, config.vocab_size, getattr(config, "max_position_embeddings", None))
    return ServerScorer(server, limits, settings.max_tokens_per_batch)
