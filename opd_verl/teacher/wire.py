"""TeacherScore as bytes: fixed little-endian header, key, contiguous arrays, one crc32 over all of it.

    header  magic "OPDT" | version u16 | flags u16 | crc32 u32 | request checksum u32 | R u32 | K u16 | K' u16 |
            bytes of the key u16
    body    key utf-8 | log_q f32 [R] | entropy f32 [R]? | top-k ids u24 [R, K]? | top-k log-probs [R, K]? |
            at-ids log-probs [R, K']? | valid, one bit per token

Bytes per response token: 4 for log_q, 4 for entropy, 1/8 for valid, 3 per top-k id (no vocabulary needs a fourth byte),
2 or 4 per log-prob. With entropy and f16: 88.1 for top-16, 40.1 for 16 at-ids, 8.1 for neither.
"""

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from opd_verl.teacher.score import TeacherScore

MAGIC = b"OPDT"
VERSION = 1
HEADER = struct.Struct("<4sHHIIIHHH")
CRC_OFFSET, CRC_BYTES = 8, 4
ENTROPY, TOPK, AT_IDS, TOPK_F16, AT_IDS_F16 = (1 << bit for bit in range(5))
MAX_ID = (1 << 24) - 1


def _crc(data: bytes) -> int:
    """crc32 of the whole message except the crc field itself, so that a flipped header byte is found too."""
    return zlib.crc32(data[CRC_OFFSET + CRC_BYTES :], zlib.crc32(data[:CRC_OFFSET]))


def _flags(score: TeacherScore) -> int:
    flags = ENTROPY * (score.entropy is not None)
    if score.topk_log_q is not None:
        flags |= TOPK | TOPK_F16 * (score.topk_log_q.dtype == torch.float16)
    if score.at_ids_log_q is not None:
        flags |= AT_IDS | AT_IDS_F16 * (score.at_ids_log_q.dtype == torch.float16)
    return flags


def _float_bytes(values: Tensor | None) -> bytes:
    if values is None:
        return b""
    array = values.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _id_bytes(ids: Tensor | None) -> bytes:
    if ids is None:
        return b""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= MAX_ID:
        raise ValueError(f"top-k ids must lie in 0..{MAX_ID}, got {int(ids.min())}..{int(ids.max())}")
    octets = ids.contiguous().numpy().astype("<u4")[..., None].view(np.uint8)
    return np.ascontiguousarray(octets[..., :3]).tobytes()


def encode(score: TeacherScore, key: str, checksum: int) -> bytes:
    """Bytes of `score` for request `key` whose tokens have crc32 `checksum`.

    Raises ValueError for a key beyond 65,535 bytes, more than 65,535 ids per token, or a top-k id beyond 24 bits.
    """
    name = key.encode()
    width = 0 if score.topk_ids is None else score.topk_ids.shape[1]
    at_width = 0 if score.at_ids_log_q is None else score.at_ids_log_q.shape[1]
    if max(len(name), width, at_width) > 0xFFFF:
        raise ValueError(f"beyond the wire's 65535: key of {len(name)} bytes, top-{width}, {at_width} at-ids")
    head = HEADER.pack(MAGIC, VERSION, _flags(score), 0, checksum, score.length, width, at_width, len(name))
    arrays = [_float_bytes(score.log_q), _float_bytes(score.entropy), _id_bytes(score.topk_ids)]
    arrays += [_float_bytes(score.topk_log_q), _float_bytes(score.at_ids_log_q)]
    message = b"".join([head, name, *arrays, np.packbits(score.valid.numpy()).tobytes()])
    return message[:CRC_OFFSET] + struct.pack("<I", _crc(message)) + message[CRC_OFFSET + CRC_BYTES :]


class _Reader:
    """Takes arrays off the front of a message, in order."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.data, self.offset = data, offset

    def take(self, dtype: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self.data, dtype, count, self.offset).reshape(shape)
        self.offset += array.nbytes
        return array.astype(array.dtype.newbyteorder("="))  # a writable copy

    def floats(self, present: int, half: int, *shape: int) -> Tensor | None:
        return torch.from_numpy(self.take("<f2" if half else "<f4", *shape)) if present else None

    def ids(self, present: int, length: int, width: int) -> Tensor | None:
        if not present:
            return None
        octets = self.take("u1", length, width, 3).astype(np.int32)
        return torch.from_numpy(octets[..., 0] | octets[..., 1] << 8 | octets[..., 2] << 16)


def _check(data: bytes) -> tuple[int, int, int, int, int, int]:
    """(flags, checksum, R, K, K', key bytes) of an intact message; ValueError says what is wrong with any other."""
    if data[:4] != MAGIC[: len(data)]:
        raise ValueError(f"not a teacher score: starts with {data[:4]!r}, expected {MAGIC!r}")
    if len(data) < HEADER.size:
        raise ValueError(f"truncated teacher score: {len(data)} bytes, the header alone has {HEADER.size}")
    _, version, flags, crc, checksum, length, width, at_width, name = HEADER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"teacher score of version {version}, this side reads {VERSION}; run one opd_verl everywhere")
    expected = HEADER.size + name + _array_bytes(flags, length, width, at_width)
    if len(data) < expected:
        raise ValueError(f"truncated teacher score: {len(data)} of {expected} bytes")
    if len(data) > expected or _crc(data) != crc:
        raise ValueError(f"corrupted teacher score: crc32 or size differs ({len(data)} bytes, {expected} expected)")
    return flags, checksum, length, width, at_width, name


def _array_bytes(flags: int, length: int, width: int, at_width: int) -> int:
    per_token = 4 + 4 * bool(flags & ENTROPY)
    per_token += width * (5 if flags & TOPK_F16 else 7) * bool(flags & TOPK)
    per_token += at_width * (2 if flags & AT_IDS_F16 else 4) * bool(flags & AT_IDS)
    return per_token * length + (length + 7) // 8


def decode(data: bytes) -> tuple[str, int, TeacherScore]:
    """(key, request checksum, score) from `encode`'s bytes.

    Raises ValueError for foreign bytes, another version, truncated data and any corrupted byte.
    """
    flags, checksum, length, width, at_width, name = _check(data)
    reader = _Reader(data, HEADER.size)
    key = reader.take("u1", name).tobytes().decode()
    log_q = torch.from_numpy(reader.take("<f4", length))
    entropy = reader.floats(flags & ENTROPY, 0, length)
    topk_ids = reader.ids(flags & TOPK, length, width)
    topk_log_q = reader.floats(flags & TOPK, flags & TOPK_F16, length, width)
    at_ids_log_q = reader.floats(flags & AT_IDS, flags & AT_IDS_F16, length, at_width)
    bits = np.unpackbits(reader.take("u1", (length + 7) // 8), count=length)
    valid = torch.from_numpy(bits.astype(bool))
    return key, checksum, TeacherScore(log_q, valid, entropy, topk_ids, topk_log_q, at_ids_log_q)
