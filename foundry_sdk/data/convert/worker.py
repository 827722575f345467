"""A worker process: reads units from its standard input, writes results to standard output.

Started as a program of its own, not forked and not by multiprocessing: a caller's script needs no
``if __name__ == "__main__"``, nothing is inherited from threads of the parent, and when the parent
dies the input ends and so does the worker.

A message is the length of its header (4 bytes), the length of its payload (8 bytes), the header as
JSON, and the payload.
"""

import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO, Final

import numpy as np

from foundry_sdk.data.convert.encode import Encoded, UnitEncoder, Vocabulary
from foundry_sdk.errors import DataError

_LENGTHS: Final = struct.Struct("<IQ")


def send(stream: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    """Write one message."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(payload)))
    stream.write(text)
    stream.write(payload)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None at the end of the stream."""
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    header_length, payload_length = _LENGTHS.unpack(head)
    header = stream.read(header_length)
    payload = stream.read(payload_length)
    if len(header) < header_length or len(payload) < payload_length:
        return None
    return json.loads(header), payload


def encode_unit(encoder: UnitEncoder, header: dict[str, Any], payload: bytes) -> Encoded:
    """Encode one unit, as ``units.Unit`` describes it."""
    if header["kind"] == "lines":
        return encoder.lines(payload, path=header["path"], line=header["line"])
    texts = []
    start = 0
    for length in header["lengths"]:
        texts.append(payload[start : start + length].decode())
        start += length
    return encoder.texts(texts, continues=header["continues"], unfinished=header["unfinished"])


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not break the protocol
    first = receive(stdin)
    if first is None:
        return
    settings = first[0]
    encoder = UnitEncoder(
        Vocabulary(**settings["vocabulary"]), column=settings["column"], errors=settings["errors"]
    )
    while (message := receive(stdin)) is not None:
        try:
            encoded = encode_unit(encoder, *message)
        except DataError as error:
            send(stdout, {"error": str(error)})
            continue
        counts = {"empty": encoded.empty, "skipped": encoded.skipped, "replaced": encoded.replaced}
        lengths = np.asarray(encoded.lengths, "<i8").tobytes()
        send(stdout, {"segments": len(encoded.lengths), **counts}, lengths + encoded.data)


if __name__ == "__main__":
    main()
