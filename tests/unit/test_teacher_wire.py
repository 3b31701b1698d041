"""The wire format: every score survives the trip to the bit, no damage goes unnoticed, and the byte budget holds."""

import struct

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.wire import CRC_OFFSET, HEADER, MAGIC, VERSION, _crc, decode, encode

FIELDS = ("log_q", "valid", "entropy", "topk_ids", "topk_log_q", "at_ids_log_q")


def random_score(
    length: int, topk: int = 0, at_ids: int = 0, entropy: bool = True, half: bool = True, seed: int = 0
) -> TeacherScore:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float16 if half else torch.float32
    nats = lambda *shape: -20 * torch.rand(*shape, generator=generator)  # noqa: E731
    return TeacherScore(
        log_q=nats(length),
        valid=torch.rand(length, generator=generator) > 0.2,
        entropy=-nats(length) if entropy else None,
        topk_ids=torch.randint(0, 1 << 24, (length, topk), generator=generator).int() if topk else None,
        topk_log_q=nats(length, topk).to(dtype) if topk else None,
        at_ids_log_q=nats(length, at_ids).to(dtype) if at_ids else None,
    )


def assert_same(left: TeacherScore, right: TeacherScore) -> None:
    for name in FIELDS:
        a, b = getattr(left, name), getattr(right, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape, name
            assert a.numpy().tobytes() == b.numpy().tobytes(), name


scores = st.builds(
    random_score,
    length=st.integers(0, 40),
    topk=st.integers(0, 5),
    at_ids=st.integers(0, 5),
    entropy=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(deadline=None)
@given(score=scores, key=st.text(max_size=40), checksum=st.integers(0, 2**32 - 1))
def test_round_trip(score: TeacherScore, key: str, checksum: int) -> None:
    got_key, got_checksum, got = decode(encode(score, key, checksum))
    assert (got_key, got_checksum) == (key, checksum)
    assert_same(got, score)
    got.log_q += 1  # decoded tensors are ours to write


@settings(deadline=None)
@given(score=scores, position=st.integers(0, 10**9), flip=st.integers(1, 255))
def test_any_flipped_byte_is_detected(score: TeacherScore, position: int, flip: int) -> None:
    data = bytearray(encode(score, "uid_0_0", 123))
    data[position % len(data)] ^= flip
    with pytest.raises(ValueError):
        decode(bytes(data))


def test_every_flip_of_every_byte_is_detected() -> None:
    data = encode(random_score(2, topk=1, at_ids=1), "u_0", 123)
    for position in range(len(data)):
        for flip in range(1, 256):
            damaged = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
            with pytest.raises(ValueError):
                decode(damaged)


@settings(deadline=None)
@given(score=scores, cut=st.integers(1, 10**9))
def test_truncated_data_is_detected(score: TeacherScore, cut: int) -> None:
    data = encode(score, "uid_0_0", 123)
    with pytest.raises(ValueError, match="truncated"):
        decode(data[: -(cut % len(data)) or -1])


def test_each_damage_is_named() -> None:
    data = encode(random_score(5, topk=2), "key", 7)
    with pytest.raises(ValueError, match="not a teacher score"):
        decode(b"JUNK" + data[4:])
    with pytest.raises(ValueError, match="corrupted"):
        decode(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="corrupted"):
        decode(data + b"x")
    other = data[:4] + struct.pack("<H", VERSION + 1) + data[6:]
    other = other[:CRC_OFFSET] + struct.pack("<I", _crc(other)) + other[CRC_OFFSET + 4 :]
    with pytest.raises(ValueError, match=f"version {VERSION + 1}"):
        decode(other)
    with pytest.raises(ValueError, match="truncated"):
        decode(b"")


def test_layout_is_pinned() -> None:
    """Written out by hand: a reader in another language needs nothing but the module docstring."""
    score = TeacherScore(
        log_q=torch.tensor([-1.5, -2.0]),
        valid=torch.tensor([True, False]),
        topk_ids=torch.tensor([[1], [0x030201]], dtype=torch.int32),
        topk_log_q=torch.tensor([[-0.5], [-0.25]], dtype=torch.float16),
    )
    data = encode(score, "ab", 9)
    magic, version, flags, _, checksum, length, topk, at_ids, key = HEADER.unpack_from(data)
    assert (magic, version, flags, checksum, length, topk, at_ids, key) == (MAGIC, 1, 0b01010, 9, 2, 1, 0, 2)
    body = b"ab" + struct.pack("<2f", -1.5, -2.0) + bytes([1, 0, 0, 1, 2, 3]) + struct.pack("<2e", -0.5, -0.25)
    assert data[HEADER.size :] == body + bytes([0b10000000])


@pytest.mark.parametrize(
    ("topk", "at_ids", "half", "budget"),
    [(16, 0, True, 100), (0, 16, True, 100), (0, 16, False, 100), (0, 0, True, 12)],
)
def test_bytes_per_response_token(topk: int, at_ids: int, half: bool, budget: int) -> None:
    length, key = 1000, f"{'0' * 36}_7_0"
    assert len(encode(random_score(length, topk, at_ids, half=half), key, 0)) / length <= budget


def test_a_non_finite_value_invalidates_its_token_only() -> None:
    def score(**bad: torch.Tensor) -> TeacherScore:
        fields = {"log_q": torch.zeros(3), "entropy": torch.zeros(3), "at_ids_log_q": torch.zeros(3, 2)}
        return TeacherScore(valid=torch.ones(3, dtype=torch.bool), **(fields | bad))

    for value in (torch.nan, torch.inf, -torch.inf):
        row = torch.tensor([0.0, value, 0.0])
        for bad in ({"log_q": row}, {"entropy": row}, {"at_ids_log_q": row[:, None].expand(3, 2)}):
            got = decode(encode(score(**bad), "k", 0))[2]
            assert got.valid.tolist() == [True, False, True], (bad, got)
            assert not any((getattr(got, name)[1] == 0).any() for name in bad)
    top = {"topk_ids": torch.zeros(3, 1, dtype=torch.int32), "topk_log_q": torch.full((3, 1), -1e6).half()}
    assert not score(**top).valid.any(), "f16 overflow must not pass as a finite log-prob"


def test_missing_has_no_zeros() -> None:
    score = decode(encode(TeacherScore.missing(3, topk=2, at_ids=4), "k", 0))[2]
    assert not score.valid.any()
    assert score.topk_log_q is not None and score.at_ids_log_q is not None and score.entropy is not None
    for values in (score.log_q, score.entropy, score.topk_log_q, score.at_ids_log_q):
        assert values.isnan().all()
    assert score.topk_log_q.shape == (3, 2) and score.at_ids_log_q.shape == (3, 4)
    assert TeacherScore.missing(0, entropy=False).entropy is None


def test_what_the_wire_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the wire"):
        encode(random_score(1), "k" * 70000, 0)
    wide = random_score(1, topk=1)
    wide.topk_ids = torch.tensor([[1 << 24]], dtype=torch.int32)
    with pytest.raises(ValueError, match="top-k ids"):
        encode(wide, "k", 0)
    with pytest.raises(AssertionError):
        TeacherScore(torch.zeros(1), torch.ones(1, dtype=torch.bool), at_ids_log_q=torch.zeros(1, 1).bfloat16())


def test_checksum_sees_tokens_and_the_border_between_prompt_and_response() -> None:
    def checksum(prompt: list[int], response: list[int]) -> int:
        return ScoreRequest("k", np.array(prompt), np.array(response)).checksum

    assert checksum([1, 2], [3]) == checksum([1, 2], [3])
    assert len({checksum([1, 2], [3]), checksum([1], [2, 3]), checksum([1, 2], [4]), checksum([1, 2, 3], [])}) == 4
    with pytest.raises(ValueError, match="empty prompt"):
        ScoreRequest("k", np.array([], dtype=np.int32), np.array([1]))
    with pytest.raises(ValueError, match="one row"):
        ScoreRequest("k", np.array([[1]]), np.array([1]))
