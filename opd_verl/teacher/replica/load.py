"""Makes a replica's scorer from its settings, with the newest weights."""

from collections.abc import Callable

from ray.actor import ActorHandle

from opd_verl.teacher.scoring.limits import ModelLimits
from opd_verl.teacher.scoring.reader import LocalReader, ModelSpec, Reader
from opd_verl.teacher.scoring.scorer import Scorer
from opd_verl.teacher.scoring.server_scorer import ServerScorer
from opd_verl.teacher.settings import TeacherSettings
from opd_verl.teacher.snapshot import current_snapshot


def load_scorer(settings: TeacherSettings, load: Callable[[ModelSpec], Reader] = LocalReader.load) -> Scorer:
    """`Scorer.from_pretrained` by the settings, with the weights of the newest snapshot if the pointer file exists.

    A colocated teacher stays in host memory, and must still be probed when its weights are first on the device.
    """
    teacher = settings.teacher
    scorer = Scorer.from_pretrained(
        teacher.path,
        vocab_limit=settings.vocab_limit,
        dtype=teacher.dtype,
        device="cpu" if teacher.colocate else settings.device,
        attn_implementation=teacher.attn_implementation,
        trust_remote_code=teacher.trust_remote_code,
        temperature=teacher.temperature,
        max_tokens_per_batch=teacher.max_tokens_per_batch,
        chunk_rows=teacher.chunk_rows,
        load=load,
        probe=not teacher.colocate,
    )
    if snapshot := current_snapshot(settings.weights_pointer):
        scorer.reader.take(snapshot)
    return scorer


def server_scorer(settings: TeacherSettings, server: ActorHandle) -> ServerScorer:
    """A scorer that asks `server`, one of verl's inference servers. This process loads no weights."""
    from transformers import AutoConfig, AutoTokenizer

    teacher = settings.teacher
    config = AutoConfig.from_pretrained(teacher.path).get_text_config()
    vocab_limit = settings.vocab_limit or len(AutoTokenizer.from_pretrained(teacher.path))
    limits = ModelLimits(vocab_limit, config.vocab_size, getattr(config, "max_position_embeddings", None))
    return ServerScorer(server, limits, teacher.max_tokens_per_batch)
