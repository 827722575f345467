"""Small MDS folders, from mosaicml-streaming's own writer, and tokenizers without a hub."""

import numpy as np
import pytest


@pytest.fixture
def token_rows():
    """Return a function that makes random rows of ids: int32 (count, length)."""

    def make(count, length=8, *, seed=0):
        return np.random.default_rng(seed).integers(5, 270, (count, length), dtype=np.int32)

    return make


@pytest.fixture
def mds(tmp_path, token_rows):
    """Return a function that writes rows (or a number of random ones) and returns the folder.

    streaming's own writer makes the shards: the format's own word.
    """
    from foundry_sdk.data.mds import import_streaming

    def write(rows, *, name="mds", columns=None, hashes=("sha256",), size_limit=1000, **options):
        rows = token_rows(rows) if isinstance(rows, int) else rows
        if columns is None:
            columns = {"text": "str"} if isinstance(rows[0], str) else {"tokens": "ndarray:int32"}
        (column,) = columns
        writer = import_streaming().MDSWriter(
            out=str(tmp_path / name),
            columns=columns,
            hashes=list(hashes),
            size_limit=size_limit,
            **options,
        )
        with writer as out:
            for row in rows:
                out.write({column: row})
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory):
    """A folder with a small byte-level BPE, saved as transformers does it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>", "<pad>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the cat sat on the mat", "the dog sat on the log"] * 20, trainer)
    folder = tmp_path_factory.mktemp("bpe")
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>", bos_token="<bos>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bpe(bpe_folder):
    """The small BPE, loaded."""
    from foundry_sdk.data.contract import TokenizerSpec
    from foundry_sdk.data.tokenizer import load_tokenizer

    return load_tokenizer(TokenizerSpec(name=str(bpe_folder)))


@pytest.fixture
def context(bpe, tmp_path):
    """Return a function that makes the context of a loader."""
    from foundry_sdk.data.contract import LoaderContext

    def make(**changes):
        values = {
            "tokenizer": bpe, "rank": 0, "world_size": 1, "device_batch": 4, "max_seq_len": 8,
            "seed": 1, "training": True, "cache_dir": tmp_path / "cache",
        }  # fmt: skip
        return LoaderContext(**{**values, **changes})

    return make
