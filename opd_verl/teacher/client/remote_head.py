"""The teacher's LM head in an actor worker, fetched once from a running teacher."""

import torch

from opd_verl.fused.head import LMHead
from opd_verl.teacher.client.pool import TeacherPool
from opd_verl.teacher.client.start import TEACHER_NAME


def teacher_head(device: torch.device | str | int) -> LMHead:
    """The first replica's LM head on `device`; every replica holds the same head."""
    return TeacherPool.connect(TEACHER_NAME, 1).lm_head().to(device)
