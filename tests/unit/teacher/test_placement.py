"""Pools that cannot be placed are refused; Ray itself would wait for ever."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_harness import brute_force

from opd_verl.config.errors import ConfigError
from opd_verl.config.sections import TeacherConfig
from opd_verl.teacher.placement import check_placement, placeable


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
    st.tuples(st.integers(1, 5), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 2)),
)
def test_placeable_is_exact(nodes: list[int], trainer: tuple[int, int], teacher: tuple[int, int]) -> None:
    assert placeable(nodes, trainer, teacher) == brute_force(nodes, trainer, teacher)


def test_enough_devices_on_the_wrong_nodes_are_refused_with_a_remedy() -> None:
    trainer = SimpleNamespace(n_gpus_per_node=6, nnodes=2)
    with pytest.raises(ConfigError, match=r"opd\.teacher\.n_gpus_per_node=4.*do not fit nodes with \[8, 8\].*Remedy"):
        check_placement([8, 8], trainer, {"": TeacherConfig(n_gpus_per_node=4, nnodes=1)})
    check_placement([8, 8], trainer, {"": TeacherConfig(n_gpus_per_node=2, nnodes=2)})
