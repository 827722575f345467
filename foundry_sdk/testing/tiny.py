"""Tiny inputs: a tokenizer without a hub, a model of a few thousand parameters, batches, shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.data.contract import LoaderContext, TokenizerSpec

if TYPE_CHECKING:
    from foundry_sdk.models.mpt.spec import MPTSpec

TINY_VOCABULARY = 258
"""Tokens of ``tiny_tokenizer``: 256 bytes, ``<eos>`` and ``<pad>``."""


def tiny_tokenizer(folder: str | Path) -> TokenizerSpec:
    """Write a tokenizer whose tokens are bytes into ``folder``; return its spec.

    Any text can be encoded and comes back unchanged; ``<eos>`` is 256 and ``<pad>`` 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate([*alphabet, "<eos>", "<pad>"])}
    inner = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<eos>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        eos_token="<eos>",  # noqa: S106 - tokens of text
        pad_token="<pad>",  # noqa: S106
    )
    tokenizer.save_pretrained(str(folder))
    return TokenizerSpec(name=str(folder))


def tiny_mpt_spec(*, vocab_size: int = TINY_VOCABULARY, max_seq_len: int = 16) -> "MPTSpec":
    """Return a model that trains on a CPU in milliseconds: two blocks, 32 wide."""
    from foundry_sdk.models.mpt.options import AttentionSpec
    from foundry_sdk.models.mpt.spec import MPTSpec

    return MPTSpec(
        d_model=32,
        n_heads=2,
        n_layers=2,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        attn_config=AttentionSpec(attn_impl="torch"),
    )


def tiny_batches(
    count: int = 4,
    *,
    sequences: int = 2,
    sequence_length: int = 8,
    vocab_size: int = TINY_VOCABULARY,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield ``count`` batches of random tokens with labels shifted by one.

    In every batch the first label of each row but the first is one that is not trained on, so
    that a mean where a sum is meant shows.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        shape = (sequences, sequence_length + 1)
        tokens = torch.randint(0, vocab_size, shape, generator=generator)
        labels = tokens[:, 1:].clone()
        labels[1:, 0] = IGNORE_INDEX
        yield Batch(input_ids=tokens[:, :-1].clone(), labels=labels)


def write_tiny_mds(
    folder: str | Path,
    *,
    rows: int = 32,
    sequence_length: int = 16,
    vocab_size: int = TINY_VOCABULARY - 1,
    seed: int = 0,
) -> Path:
    """Write MDS shards of concatenated tokens into ``folder``, which must be new; return it.

    The tokens count upwards from a random start, so a model can learn what comes next. Ids are
    below ``vocab_size``; by default ``<pad>`` is not among them.
    """
    import numpy as np

    from foundry_sdk.data.mds import import_streaming

    starts = np.random.default_rng(seed).integers(0, vocab_size, rows)
    writer = import_streaming().MDSWriter(
        out=str(folder), columns={"tokens": "ndarray:int32"}, hashes=["sha256"]
    )
    with writer as out:
        for start in starts:
            ids = (start + np.arange(sequence_length)) % vocab_size
            out.write({"tokens": ids.astype(np.int32)})
    return Path(folder)


def tiny_context(
    tokenizer: TokenizerSpec,
    *,
    rank: int = 0,
    world_size: int = 1,
    device_batch: int = 4,
    max_seq_len: int = 16,
    training: bool = True,
    cache_dir: Path | None = None,
) -> LoaderContext:
    """Return what a loader is built for, with the tokenizer loaded."""
    from foundry_sdk.data.tokenizer import load_tokenizer

    return LoaderContext(
        tokenizer=load_tokenizer(tokenizer),
        rank=rank,
        world_size=world_size,
        device_batch=device_batch,
        max_seq_len=max_seq_len,
        seed=17,
        training=training,
        cache_dir=cache_dir,
    )
