"""The scores that a configuration needs of the teacher."""

from itertools import product

import pytest

from opd_verl.config.opd import OpdConfig
from opd_verl.config.sections import (
    Combine,
    Engine,
    ForwardKLConfig,
    NamedTeacherConfig,
    ObjectiveConfig,
    TeacherConfig,
)
from opd_verl.objectives.names import TEACHER_SUPPORTS, Placement, Support
from opd_verl.teacher.needs import gives_entropy, keeps_hidden, needs_hidden, student_topk, teacher_topk

K, FORWARD_K = 5, 3
NEEDS = {
    # support: (the teacher's top-k, the student's top-k, hidden states travel)
    Support.sampled: (0, 0, False),
    Support.student_topk: (0, K, False),
    Support.teacher_topk: (K, 0, False),
    Support.union: (K, K, False),
    Support.intersection: (K, K, False),
    Support.symmetric_difference: (K, K, False),
    Support.full: (0, 0, True),
}


def section(support: Support, placement: Placement = Placement.none, forward_k: int = FORWARD_K) -> OpdConfig:
    k = 0 if support in (Support.sampled, Support.full) else K
    return OpdConfig(
        objective=ObjectiveConfig(support=support, k=k), forward_kl=ForwardKLConfig(placement=placement, k=forward_k)
    )


def test_every_support_is_listed() -> None:
    assert set(NEEDS) == set(Support)


@pytest.mark.parametrize("support", Support)
def test_each_support_asks_for_its_own(support: Support) -> None:
    opd = section(support)
    assert (teacher_topk(opd), student_topk(opd), needs_hidden(opd)) == NEEDS[support]
    assert keeps_hidden(opd) == (support not in (Support.sampled, Support.teacher_topk))


@pytest.mark.parametrize(("support", "placement"), product(Support, Placement))
@pytest.mark.parametrize("forward_k", [FORWARD_K, K + 4])
def test_the_forward_kl_asks_for_the_teachers_top_k_too(support: Support, placement: Placement, forward_k: int) -> None:
    own, student, hidden = NEEDS[support]
    opd = section(support, placement, forward_k)
    assert teacher_topk(opd) == (own if placement is Placement.none else max(own, forward_k))
    assert (student_topk(opd), needs_hidden(opd)) == (student, hidden), "it needs nothing else"


def test_reward_hooks_read_the_students_top_k_of_a_sampled_objective() -> None:
    opd = OpdConfig(objective=ObjectiveConfig(support=Support.sampled, k=K))
    assert student_topk(opd) == K and teacher_topk(opd) == 0 and keeps_hidden(opd)


def test_supports_of_the_teacher() -> None:
    assert set(TEACHER_SUPPORTS) == {support for support, (teacher, _, _) in NEEDS.items() if teacher}


def test_mixtures_and_servers_have_no_entropy() -> None:
    served, scored = NamedTeacherConfig(engine=Engine.vllm), NamedTeacherConfig()
    assert gives_entropy(OpdConfig()) and not gives_entropy(OpdConfig(teacher=TeacherConfig(engine=Engine.vllm)))
    assert gives_entropy(OpdConfig(teachers={"a": scored, "b": scored}))
    assert not gives_entropy(OpdConfig(teachers={"a": scored, "b": served}))
    assert not gives_entropy(OpdConfig(teachers={"a": scored, "b": scored}, combine=Combine.average))
