"""Supports against Python sets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opd_verl.metrics.overlap import measure_overlap
from opd_verl.objectives.names import Support
from opd_verl.objectives.support import SupportTensors, build_support

BLOCKS = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 9), min_size=k, max_size=k, unique=True), min_size=1, max_size=4)
)
OF_TWO = [Support.union, Support.intersection, Support.symmetric_difference]


def block(rows: list[list[int]], side: int) -> SupportTensors:
    """Log-probs that tell id and side: student id 7 has log q -7.1, log p -7.2; teacher's -7.3 and -7.4."""
    ids = torch.tensor(rows, dtype=torch.int32)
    offset = 0.1 + 0.2 * side
    return SupportTensors(ids, -ids.double() - offset, -ids.double() - offset - 0.1)


def overlap_ratio(student: Tensor, teacher: Tensor) -> Tensor:
    """The overlap ratio of two blocks of ids alone."""
    blocks = (SupportTensors(ids, *[-torch.ones_like(ids, dtype=torch.float32)] * 2) for ids in (student, teacher))
    return measure_overlap(*blocks).ratio


def members(support: SupportTensors, row: int) -> list[int]:
    return support.ids[row][support.member[row]].tolist()


def test_by_hand() -> None:
    student, teacher = block([[5, 2, 8]], 0), block([[8, 1, 5, 3]], 1)
    expected = {
        Support.student_topk: [5, 2, 8],
        Support.teacher_topk: [8, 1, 5, 3],
        Support.union: [5, 2, 8, -1, 1, -1, 3],
        Support.intersection: [5, -1, 8],
        Support.symmetric_difference: [-1, 2, -1, -1, 1, -1, 3],
    }
    for support, ids in expected.items():
        assert build_support(support, student, teacher).ids.tolist() == [ids]


@settings(max_examples=80, deadline=None)
@given(BLOCKS, st.data())
def test_against_sets(student_rows: list[list[int]], data: st.DataObject) -> None:
    """Every member once, with its own block's log-probs; ids outside keep finite log-probs; the blocks stay as are."""
    teacher_rows = [
        data.draw(st.lists(st.integers(0, 9), min_size=4, max_size=4, unique=True)) for _ in range(len(student_rows))
    ]
    student, teacher = block(student_rows, 0), block(teacher_rows, 1)
    for support in OF_TWO:
        built = build_support(support, student, teacher)
        assert built.ids.dtype == torch.int32 and built.ids.shape == built.log_q.shape == built.log_p_old.shape
        assert built.log_q.isfinite().all() and built.log_p_old.isfinite().all()
        for row, (s, t) in enumerate(zip(student_rows, teacher_rows, strict=True)):
            only = [v for v in s if v not in t], [v for v in t if v not in s]
            shared = [v for v in s if v in t]
            expected = {Support.union: s + only[1], Support.intersection: shared}.get(support, only[0] + only[1])
            assert members(built, row) == expected
            sides = [0.1 if v in s else 0.3 for v in expected]
            logs = [-v - side for v, side in zip(expected, sides, strict=True)]
            assert built.log_q[row][built.member[row]].tolist() == pytest.approx(logs)
            assert built.log_p_old[row][built.member[row]].tolist() == pytest.approx([x - 0.1 for x in logs])
    assert student.ids.tolist() == student_rows and teacher.ids.tolist() == teacher_rows


def test_an_id_that_a_block_already_left_out_stays_out() -> None:
    student, teacher = block([[4, -1, 2]], 0), block([[-1, 2, 6]], 1)
    assert build_support(Support.union, student, teacher).ids.tolist() == [[4, -1, 2, -1, -1, 6]]
    assert build_support(Support.intersection, student, teacher).ids.tolist() == [[-1, -1, 2]]
    assert build_support(Support.symmetric_difference, student, teacher).ids.tolist() == [[4, -1, -1, -1, -1, 6]]
    assert overlap_ratio(student.ids, teacher.ids).tolist() == pytest.approx([1 / 3])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3), (0, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    ids = torch.arange(3, dtype=torch.int32).expand(shape)
    same = SupportTensors(ids, torch.zeros(shape), torch.zeros(shape))
    for support, width in ((Support.union, 6), (Support.intersection, 3), (Support.symmetric_difference, 6)):
        assert build_support(support, same, same).ids.shape == (*shape[:-1], width)
    assert overlap_ratio(ids, ids).shape == shape[:-1]


@pytest.mark.parametrize("support", [Support.sampled, Support.full])
def test_supports_without_blocks(support: Support) -> None:
    with pytest.raises(ValueError, match=rf"'{support.value}' is not made of top-k blocks"):
        build_support(support, block([[1]], 0), block([[1]], 1))


@pytest.mark.parametrize(
    ("support", "missing"),
    [(Support.student_topk, "student"), (Support.teacher_topk, "teacher")]
    + [(support, side) for support in OF_TWO for side in ("student", "teacher")],
)
def test_a_missing_block_is_named(support: Support, missing: str) -> None:
    student, teacher = (None if missing == side else block([[1]], 0) for side in ("student", "teacher"))
    with pytest.raises(ValueError, match=rf"'{support.value}' needs the {missing}'s top-k block"):
        build_support(support, student, teacher)


def test_one_sided_supports_need_one_block() -> None:
    student = block([[1, 2]], 0)
    assert build_support(Support.student_topk, student, None) is student
    assert build_support(Support.teacher_topk, None, student) is student


def naive_overlap(student: Tensor, teacher: Tensor) -> list[float]:
    return [len(set(s) & set(t)) / len(s) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]


@pytest.mark.parametrize("k", [1, 4, 16])
def test_overlap_ratio(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    student, teacher = (torch.rand(20, 24, generator=generator).topk(k).indices.int() for _ in range(2))
    ratio = overlap_ratio(student, teacher)
    assert ratio.dtype == torch.float32 and ratio.tolist() == pytest.approx(naive_overlap(student, teacher))
    assert 0 < ratio.mean() < 1
