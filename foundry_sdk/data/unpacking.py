"""Unpacks a compressed shard, into no more bytes than its index says: a few can hold terabytes."""

import bz2
import gzip
import importlib
import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)
_BROTLI_CHUNK: Final = 64


def unpack(compression: str, data: bytes, limit: int) -> bytes:
    """Return what ``data`` unpacks to.

    Args:
        compression: such as "zstd" or "zstd:7".
        data: of the compressed file.
        limit: bytes that may come out.

    Raises:
        ValueError: more would come out, or it is no such format.
        OSError, EOFError, zlib.error: it is damaged (gz, bz2).
    """
    return _UNPACKERS[compression.partition(":")[0]](data, limit)


def _bounded(unpacked: bytes | bytearray, limit: int) -> bytes:
    if len(unpacked) > limit:
        raise ValueError(f"it unpacks to more than the {limit} bytes that the index says")
    return bytes(unpacked)


def _gz(data: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return _bounded(file.read(limit + 1), limit)


def _bz2(data: bytes, limit: int) -> bytes:
    with bz2.BZ2File(io.BytesIO(data)) as file:
        return _bounded(file.read(limit + 1), limit)


def _zstd(data: bytes, limit: int) -> bytes:
    stated = zstd_content_size(data)
    if stated > limit:
        raise ValueError(f"it unpacks to {stated} bytes, the index says {limit}")
    unpacked: bytes = importlib.import_module("zstd").decompress(data)
    return _bounded(unpacked, limit)


def _snappy(data: bytes, limit: int) -> bytes:
    stated = shift = 0
    for byte in data[:5]:  # the length comes first, 7 bits a byte; the library believes it
        stated |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if stated > limit:
        raise ValueError(f"it unpacks to {stated} bytes, the index says {limit}")
    unpacked: bytes = importlib.import_module("snappy").decompress(data)
    return _bounded(unpacked, limit)


def _brotli(data: bytes, limit: int) -> bytes:
    reader: Any = importlib.import_module("brotli").Decompressor()
    unpacked = bytearray()
    if hasattr(reader, "can_accept_more_data"):  # 1.2 and later
        unpacked += reader.process(data, output_buffer_limit=limit + 1)
        while not (reader.is_finished() or reader.can_accept_more_data() or len(unpacked) > limit):
            unpacked += reader.process(b"", output_buffer_limit=limit + 1 - len(unpacked))
    else:
        for start in range(0, len(data), _BROTLI_CHUNK):
            unpacked += reader.process(data[start : start + _BROTLI_CHUNK])
            if len(unpacked) > limit:
                break
    whole = _bounded(unpacked, limit)
    if not reader.is_finished():
        raise ValueError("it is cut short")
    return whole


_UNPACKERS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = MappingProxyType(
    {"br": _brotli, "bz2": _bz2, "gz": _gz, "snappy": _snappy, "zstd": _zstd}
)


def zstd_content_size(data: bytes) -> int:
    """Return the sum of the sizes that the frames of zstd ``data`` state (RFC 8878, 3.1).

    The library makes room for that many bytes before it reads on, and not for more.

    Raises:
        ValueError: a frame states none, or there is no frame where one should begin.
    """
    total = at = 0
    while at < len(data):
        magic = data[at : at + 4]
        if int.from_bytes(magic, "little") in _ZSTD_SKIPPABLE:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        if magic != _ZSTD_MAGIC or at + 5 > len(data):
            raise ValueError("it is no zstd")
        descriptor = data[at + 4]
        single = descriptor >> 5 & 1
        width = (single, 2, 4, 8)[descriptor >> 6]
        if not width:
            raise ValueError("a frame does not state its size, so it is not unpacked")
        at += 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
        total += int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
        at = _after_blocks(data, at + width) + (4 if descriptor >> 2 & 1 else 0)
    return total


def _after_blocks(data: bytes, at: int) -> int:
    """Return where the blocks of a frame end that begin at ``at``."""
    while at < len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        kind, size = header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)  # 1: one byte, repeated
        if header & 1:
            break
    return at
