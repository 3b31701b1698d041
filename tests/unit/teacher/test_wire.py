"""The wire format: every score survives the trip to the bit, no damage goes unnoticed, and the byte budget holds."""

import struct

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from opd_verl.teacher.score import ScoreRequest, TeacherScore
from opd_verl.teacher.wire import CRC_OFFSET, HEADER, MAGIC, VERSION, _crc, decode, encode

FIELDS = ("log_q", "valid", "entropy", "topk_ids", "topk_log_q", "at_ids_log_q", "hidden")
HIDDEN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random_score(
    length: int,
    topk: int = 0,
    at_ids: int = 0,
    entropy: bool = True,
    half: bool = True,
    seed: int = 0,
    hidden: int = 0,
    hidden_dtype: torch.dtype = torch.bfloat16,
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
        hidden=torch.randn(length, hidden, generator=generator).to(hidden_dtype) if hidden else None,
    )


def raw(values: torch.Tensor) -> bytes:
    bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    return bits.contiguous().numpy().tobytes()


def assert_same(left: TeacherScore, right: TeacherScore) -> None:
    for name in FIELDS:
        a, b = getattr(left, name), getattr(right, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape, name
            assert raw(a) == raw(b), name


scores = st.builds(
    random_score,
    length=st.integers(0, 40),
    topk=st.integers(0, 5),
    at_ids=st.integers(0, 5),
    entropy=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 1000),
    hidden=st.integers(0, 7),
    hidden_dtype=st.sampled_from(HIDDEN_DTYPES),
)


@settings(deadline=None)
@given(score=scores, key=st.text(max_size=40), checksum=st.integers(0, 2**32 - 1))
def test_round_trip(score: TeacherScore, key: str, checksum: int) -> None:
    got_key, got_checksum, got = decode(encode(score, key, checksum))
    assert (got_key, got_checksum) == (key, checksum)
    assert_same(got, score)
    for values in (got.log_q, got.hidden):  # decoded tensors are ours to write
        if values is not None:
            values += 1


@settings(deadline=None)
@given(score=scores, position=st.integers(0, 10**9), flip=st.integers(1, 255))
def test_any_flipped_byte_is_detected(score: TeacherScore, position: int, flip: int) -> None:
    data = bytearray(encode(score, "uid_0_0", 123))
    data[position % len(data)] ^= flip
    with pytest.raises(ValueError):
        decode(bytes(data))


def test_every_flip_of_every_byte_is_detected() -> None:
    data = encode(random_score(2, topk=1, at_ids=1, hidden=2), "u_0", 123)
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


@pytest.mark.parametrize("length", [0, 3])
def test_a_message_of_version_1_is_refused_by_its_version(length: int) -> None:
    """Its header had no H and was two bytes shorter; an empty one is shorter than the header of today."""
    body = bytes(4 * length + (length + 7) // 8)
    old = struct.pack("<4sHHIIIHHH", MAGIC, 1, 0, 0, 9, length, 0, 0, 0) + body
    assert len(old) < HEADER.size or length
    for data in (old, old[:6]):
        with pytest.raises(ValueError, match="version 1, this side reads 2; run one opd_verl everywhere"):
            decode(data)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_hidden_number_survives_to_the_bit(dtype: torch.dtype) -> None:
    """All 65,536 patterns, NaN payloads included; rows with a number that is not finite are invalid."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(-1, 16)
    sent = TeacherScore(torch.zeros(len(bits)), torch.ones(len(bits), dtype=torch.bool), hidden=bits.view(dtype))
    got = decode(encode(sent, "k", 0))[2]
    assert got.hidden is not None and got.hidden.dtype == dtype
    assert torch.equal(got.hidden.view(torch.int16), bits)
    exponent = 0x7F80 if dtype == torch.bfloat16 else 0x7C00
    expected = ((bits.int() & exponent) != exponent).all(-1)
    assert torch.equal(got.valid, expected) and 0 < int(expected.sum()) < len(bits)


def test_every_pattern_of_a_float32_hidden_number_survives() -> None:
    bits = torch.randint(-(1 << 31), 1 << 31, (500, 8), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    sent = TeacherScore(torch.zeros(500), torch.ones(500, dtype=torch.bool), hidden=bits.view(torch.float32))
    got = decode(encode(sent, "k", 0))[2].hidden
    assert got is not None and torch.equal(got.view(torch.int32), bits)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float16, 2), (torch.bfloat16, 2)])
def test_hidden_states_cost_their_own_bytes_and_nothing_more(dtype: torch.dtype, size: int) -> None:
    plain, wide = random_score(1000), random_score(1000, hidden=64, hidden_dtype=dtype)
    assert len(encode(wide, "k", 0)) - len(encode(plain, "k", 0)) == 1000 * 64 * size


def test_a_slice_of_hidden_states_is_sent_as_it_looks() -> None:
    wide = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    for hidden in (wide[:, ::2], wide[1:], wide.T[:4, :3]):
        sent = TeacherScore(torch.zeros(len(hidden)), torch.ones(len(hidden), dtype=torch.bool), hidden=hidden)
        assert_same(decode(encode(sent, "k", 0))[2], sent)


def test_layout_is_pinned() -> None:
    """Written out by hand: a reader in another language needs nothing but the module docstring."""
    score = TeacherScore(
        log_q=torch.tensor([-1.5, -2.0]),
        valid=torch.tensor([True, False]),
        topk_ids=torch.tensor([[1], [0x030201]], dtype=torch.int32),
        topk_log_q=torch.tensor([[-0.5], [-0.25]], dtype=torch.float16),
        hidden=torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -0.0]], dtype=torch.bfloat16),
    )
    data = encode(score, "ab", 9)
    magic, version, flags, _, checksum, length, topk, at_ids, hidden, key = struct.unpack_from("<4sHHIIIHHHH", data)
    assert (magic, version, flags, checksum, length) == (b"OPDT", 2, 2 + 8 + 32 + 128, 9, 2)
    assert (topk, at_ids, hidden, key) == (1, 0, 3, 2)
    body = b"ab" + struct.pack("<2f", -1.5, -2.0) + bytes([1, 0, 0, 1, 2, 3]) + struct.pack("<2e", -0.5, -0.25)
    body += struct.pack("<6H", 0x3F80, 0xC000, 0x3F00, 0, 0x4040, 0x8000)  # bf16: the upper half of an f32
    assert data[28:] == body + bytes([0b10000000])


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
        fields["hidden"] = torch.zeros(3, 4).bfloat16()
        return TeacherScore(valid=torch.ones(3, dtype=torch.bool), **(fields | bad))

    for value in (torch.nan, torch.inf, -torch.inf):
        row = torch.tensor([0.0, value, 0.0])
        one_of_four = torch.stack([torch.zeros(3), torch.zeros(3), row, torch.zeros(3)], -1).bfloat16()
        wide = ({"at_ids_log_q": row[:, None].expand(3, 2)}, {"hidden": one_of_four})
        for bad in ({"log_q": row}, {"entropy": row}, *wide):
            got = decode(encode(score(**bad), "k", 0))[2]
            assert got.valid.tolist() == [True, False, True], (bad, got)
            assert all(torch.equal(getattr(got, name).nan_to_num(9), bad[name].nan_to_num(9)) for name in bad)
    top = {"topk_ids": torch.zeros(3, 1, dtype=torch.int32), "topk_log_q": torch.full((3, 1), -1e6).half()}
    assert not score(**top).valid.any(), "f16 overflow must not pass as a finite log-prob"


def test_missing_has_no_zeros() -> None:
    score = decode(encode(TeacherScore.missing(3, topk=2, at_ids=4), "k", 0))[2]
    assert not score.valid.any()
    assert score.topk_log_q is not None and score.at_ids_log_q is not None and score.entropy is not None
    for values in (score.log_q, score.entropy, score.topk_log_q, score.at_ids_log_q):
        assert values.isnan().all()
    assert score.topk_log_q.shape == (3, 2) and score.at_ids_log_q.shape == (3, 4)
    assert TeacherScore.missing(0, entropy=False).entropy is None and score.hidden is None


@pytest.mark.parametrize("dtype", HIDDEN_DTYPES)
def test_missing_hidden_states_are_nan_of_the_same_dtype(dtype: torch.dtype) -> None:
    score = decode(encode(TeacherScore.missing(3, hidden=5, hidden_dtype=dtype), "k", 0))[2]
    assert score.hidden is not None and score.hidden.shape == (3, 5) and score.hidden.dtype == dtype
    assert score.hidden.isnan().all() and not score.valid.any()


def test_what_the_wire_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the wire"):
        encode(random_score(1), "k" * 70000, 0)
    with pytest.raises(ValueError, match=r"beyond the wire's 65535.*70000 hidden"):
        encode(random_score(1, hidden=70000), "k", 0)
    wide = random_score(1, topk=1)
    wide.topk_ids = torch.tensor([[1 << 24]], dtype=torch.int32)
    with pytest.raises(ValueError, match="top-k ids"):
        encode(wide, "k", 0)
    with pytest.raises(AssertionError):
        TeacherScore(torch.zeros(1), torch.ones(1, dtype=torch.bool), at_ids_log_q=torch.zeros(1, 1).bfloat16())
    for hidden in (torch.zeros(1, 2).double(), torch.zeros(1), torch.zeros(2, 2)):
        with pytest.raises(AssertionError):
            TeacherScore(torch.zeros(1), torch.ones(1, dtype=torch.bool), hidden=hidden)


def test_checksum_sees_tokens_and_the_border_between_prompt_and_response() -> None:
    def checksum(prompt: list[int], response: list[int]) -> int:
        return ScoreRequest("k", np.array(prompt), np.array(response)).checksum

    assert checksum([1, 2], [3]) == checksum([1, 2], [3])
    assert len({checksum([1, 2], [3]), checksum([1], [2, 3]), checksum([1, 2], [4]), checksum([1, 2, 3], [])}) == 4
    with pytest.raises(ValueError, match="empty prompt"):
        ScoreRequest("k", np.array([], dtype=np.int32), np.array([1]))
    with pytest.raises(ValueError, match="one row"):
        ScoreRequest("k", np.array([[1]]), np.array([1]))
