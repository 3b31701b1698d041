"""TeacherScore as bytes: fixed little-endian header, key, contiguous arrays, one crc32 over all of it.

    header  magic "OPDT" | version u16 | flags u16 | crc32 u32 | request checksum u32 | R u32 | K u16 | K' u16 |
            H u16 | bytes of the key u16
    body    key utf-8 | log_q f32 [R] | entropy f32 [R]? | top-k ids u24 [R, K]? | top-k log-probs [R, K]? |
            at-ids log-probs [R, K']? | hidden [R, H]? | valid, one bit per token
    flags   1 entropy | 2 top-k | 4 at-ids | 8 top-k in f16 | 16 at-ids in f16 | 32 hidden | 64 hidden in f16 |
            128 hidden in bf16; floats without such a flag are f32

Bytes per response token: 4 for log_q, 4 for entropy, 1/8 for valid, 3 per top-k id (no vocabulary needs a fourth byte),
2 or 4 per log-prob, 2 H or 4 H for hidden. With entropy and f16: 88.1 for top-16, 40.1 for 16 at-ids, 8.1 for
neither; bf16 hidden states of a teacher with H = 2560 add 5120. A bf16 number travels as its two bytes, bit for bit.
"""

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from opd_verl.teacher.score import TeacherScore

MAGIC = b"OPDT"
VERSION = 2
HEADER = struct.Struct("<4sHHIIIHHHH")
CRC_OFFSET, CRC_BYTES = 8, 4
VERSION_AT = slice(4, 6)
ENTROPY, TOPK, AT_IDS, TOPK_F16, AT_IDS_F16, HIDDEN, HIDDEN_F16, HIDDEN_BF16 = (1 << bit for bit in range(8))
HIDDEN_FLAGS = {torch.float32: HIDDEN, torch.float16: HIDDEN | HIDDEN_F16, torch.bfloat16: HIDDEN | HIDDEN_BF16}
MAX_ID = (1 << 24) - 1


def _crc(head: bytes, *rest: bytes) -> int:
    """crc32 of the whole message except the crc field itself, so that a flipped header byte is noticed too.

    The message may come in parts; the first part holds the whole header. Nothing is copied.
    """
    crc = zlib.crc32(memoryview(head)[CRC_OFFSET + CRC_BYTES :], zlib.crc32(head[:CRC_OFFSET]))
    for part in rest:
        crc = zlib.crc32(part, crc)
    return crc


def _flags(score: TeacherScore) -> int:
    """The header's flags: which fields a score has, and which of them are 16-bit floats."""
    flags = ENTROPY * (score.entropy is not None)
    if score.topk_log_q is not None:
        flags |= TOPK | TOPK_F16 * (score.topk_log_q.dtype == torch.float16)
    if score.at_ids_log_q is not None:
        flags |= AT_IDS | AT_IDS_F16 * (score.at_ids_log_q.dtype == torch.float16)
    if score.hidden is not None:
        flags |= HIDDEN_FLAGS[score.hidden.dtype]
    return flags


def _float_bytes(values: Tensor | None) -> bytes:
    if values is None:
        return b""
    values = values.contiguous()
    bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values  # numpy has no bfloat16
    array = bits.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _id_bytes(ids: Tensor | None) -> bytes:
    if ids is None:
        return b""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= MAX_ID:
        raise ValueError(f"top-k ids must lie in 0..{MAX_ID}, got {int(ids.min())}..{int(ids.max())}")
    # Little-endian bytes: the fourth byte of each id is 0 and is not sent.
    octets = ids.contiguous().numpy().astype("<u4")[..., None].view(np.uint8)
    return np.ascontiguousarray(octets[..., :3]).tobytes()


def encode(score: TeacherScore, key: str, checksum: int) -> bytes:
    """Bytes of `score` for request `key` whose tokens have crc32 `checksum`.

    Raises ValueError for a key beyond 65,535 bytes, more than 65,535 ids or hidden numbers per token, or a top-k id
    beyond 24 bits.
    """
    name = key.encode()
    wide = (score.topk_ids, score.at_ids_log_q, score.hidden)
    widths = [0 if values is None else values.shape[1] for values in wide]
    if max(len(name), *widths) > 0xFFFF:
        raise ValueError(
            f"beyond the wire's 65535: key of {len(name)} bytes, top-{widths[0]}, {widths[1]} at-ids, "
            f"{widths[2]} hidden"
        )
    head = HEADER.pack(MAGIC, VERSION, _flags(score), 0, checksum, score.length, *widths, len(name))
    body = [name, _float_bytes(score.log_q), _float_bytes(score.entropy), _id_bytes(score.topk_ids)]
    body += [_float_bytes(values) for values in (score.topk_log_q, score.at_ids_log_q, score.hidden)]
    body.append(np.packbits(score.valid.numpy()).tobytes())
    crc = struct.pack("<I", _crc(head, *body))
    return b"".join([head[:CRC_OFFSET], crc, head[CRC_OFFSET + CRC_BYTES :], *body])


class _Cursor:
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

    def hidden(self, flags: int, length: int, width: int) -> Tensor | None:
        if flags & HIDDEN_BF16:
            return torch.from_numpy(self.take("<i2", length, width)).view(torch.bfloat16)
        return self.floats(flags & HIDDEN, flags & HIDDEN_F16, length, width)

    def ids(self, present: int, length: int, width: int) -> Tensor | None:
        if not present:
            return None
        octets = self.take("u1", length, width, 3).astype(np.int32)
        return torch.from_numpy(octets[..., 0] | octets[..., 1] << 8 | octets[..., 2] << 16)


def _check(data: bytes) -> tuple[int, int, int, int, int, int, int]:
    """(flags, checksum, R, K, K', H, key bytes) of an intact message. Raises ValueError that says what is wrong."""
    if data[:4] != MAGIC[: len(data)]:
        raise ValueError(f"not a teacher score: starts with {data[:4]!r}, expected {MAGIC!r}")
    version = int.from_bytes(data[VERSION_AT], "little")  # before the size: other versions have shorter headers
    if len(data) >= VERSION_AT.stop and version != VERSION:
        raise ValueError(f"teacher score of version {version}, this side reads {VERSION}; run one opd_verl everywhere")
    if len(data) < HEADER.size:
        raise ValueError(f"truncated teacher score: {len(data)} bytes, the header alone has {HEADER.size}")
    _, _, flags, crc, checksum, length, width, at_width, hidden, name = HEADER.unpack_from(data)
    expected = HEADER.size + name + _array_bytes(flags, length, width, at_width, hidden)
    if len(data) < expected:
        raise ValueError(f"truncated teacher score: {len(data)} of {expected} bytes")
    if len(data) > expected or _crc(data) != crc:
        raise ValueError(f"corrupted teacher score: crc32 or size differs ({len(data)} bytes, {expected} expected)")
    return flags, checksum, length, width, at_width, hidden, name


def _array_bytes(flags: int, length: int, width: int, at_width: int, hidden: int) -> int:
    per_token = 4 + 4 * bool(flags & ENTROPY)
    per_token += width * (5 if flags & TOPK_F16 else 7) * bool(flags & TOPK)
    per_token += at_width * (2 if flags & AT_IDS_F16 else 4) * bool(flags & AT_IDS)
    per_token += hidden * (2 if flags & (HIDDEN_F16 | HIDDEN_BF16) else 4) * bool(flags & HIDDEN)
    return per_token * length + (length + 7) // 8


def decode(data: bytes) -> tuple[str, int, TeacherScore]:
    """(key, request checksum, score) from `encode`'s bytes.

    Raises ValueError for foreign bytes, another version, truncated data and any corrupted byte.
    """
    flags, checksum, length, width, at_width, hidden_size, name = _check(data)
    cursor = _Cursor(data, HEADER.size)
    key = cursor.take("u1", name).tobytes().decode()
    log_q = torch.from_numpy(cursor.take("<f4", length))
    entropy = cursor.floats(flags & ENTROPY, 0, length)
    topk_ids = cursor.ids(flags & TOPK, length, width)
    topk_log_q = cursor.floats(flags & TOPK, flags & TOPK_F16, length, width)
    at_ids_log_q = cursor.floats(flags & AT_IDS, flags & AT_IDS_F16, length, at_width)
    hidden = cursor.hidden(flags, length, hidden_size)
    bits = np.unpackbits(cursor.take("u1", (length + 7) // 8), count=length)
    valid = torch.from_numpy(bits.astype(bool))
    return key, checksum, TeacherScore(log_q, valid, entropy, topk_ids, topk_log_q, at_ids_log_q, hidden)
