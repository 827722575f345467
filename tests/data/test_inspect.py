import json

import numpy as np
import pytest

from foundry_sdk.cli.main import main
from foundry_sdk.data.inspection import inspect_data
from foundry_sdk.errors import DataError


@pytest.fixture
def foundry(capsys):
    """Return a function that runs ``foundry data inspect``: exit code, output, errors."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(["data", "inspect", *(str(word) for word in words)])
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return run


@pytest.mark.parametrize("spelling", ["--local", "--local-path", "--local_path", None])
def test_batches_are_shown_with_shapes_and_decoded(foundry, mds, bpe, bpe_folder, spelling):
    ids = bpe("the cat sat on the mat and the dog").input_ids
    folder = mds([np.array(ids[:6], np.int32), np.array(ids[6:12], np.int32)] * 3)
    place = [folder] if spelling is None else [spelling, folder]
    code, output, _ = foundry(*place, "--tokenizer", bpe_folder, "--max_seq_len", 4, "--batches", 2)
    assert code == 0
    assert output.count("batch ") == 2
    assert "input_ids       (2, 4)         int64" in output
    assert "labels          (2, 4)         int64" in output
    assert bpe.decode(ids[:4]) in output
    assert bpe.decode(ids[6:10]) in output
    assert "columns     tokens (ndarray:int32)" in output


def test_the_statistics_are_those_of_the_rows(mds, token_rows, bpe):
    rows = token_rows(30, 16)
    rows[4, 2] = rows[9, 0] = rows[9, 15] = bpe.eos_token_id
    numbers = inspect_data(local=str(mds(rows)), tokenizer=bpe).statistics
    assert numbers.samples == 30
    assert numbers.tokens == rows.size
    assert numbers.eos_tokens == (rows == bpe.eos_token_id).sum() == 3
    assert numbers.eos_share == pytest.approx(3 / rows.size)
    assert numbers.largest_id == rows.max()
    assert numbers.histogram == [(16, 32, 30)]


def test_texts_are_counted_by_length(mds, bpe):
    texts = ["", "a", "the cat", "the dog sat on the log", "x" * 100]
    found = inspect_data(local=str(mds(texts)), tokenizer=bpe)
    numbers = found.statistics
    assert numbers.characters == sum(map(len, texts))
    assert numbers.tokens == sum(len(bpe(text).input_ids) for text in texts)
    by_hand = {(0, 1): 1, (1, 2): 1, (4, 8): 1, (16, 32): 1, (64, 128): 1}
    assert {bin_[:2]: bin_[2] for bin_ in numbers.histogram if bin_[2]} == by_hand
    assert found.batches[0].samples[1] == (1, "a")


def test_other_columns_are_shown_as_they_are_stored(foundry, mds):
    folder = mds(["what is it?"], columns={"prompt": "str"})
    code, output, _ = foundry(folder)
    assert code == 0
    assert "prompt          (11,)          str" in output
    assert "prompt: what is it?" in output


def test_no_more_is_read_than_asked_for(mds, token_rows, bpe):
    rows = token_rows(30)
    found = inspect_data(local=str(mds(rows)), tokenizer=bpe, samples=7, batches=1, batch_size=3)
    assert found.statistics.tokens == rows[:7].size
    assert [number for batch in found.batches for number, _ in batch.samples] == [0, 1, 2]
    assert inspect_data(local=str(found.folder), samples=0).statistics.samples == 30


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_remote_folder_is_read_through_a_local_one(foundry, mds, tmp_path, compression):
    remote = mds(30, compression=compression)
    for words in (["--remote", remote], ["--remote_path", remote, "--local", tmp_path / "local"]):
        code, output, _ = foundry(*words, "--verify", "--batches", 0)
        assert code == 0
        assert "samples     30" in output
        assert "files are as their digests say" in output
    assert (tmp_path / "local" / "index.json").is_file()


@pytest.mark.parametrize("remote", [False, True])
def test_verify_names_every_damaged_file(foundry, mds, remote):
    folder = mds(100)
    shards = sorted(folder.glob("shard*"))
    for path, position in ((shards[0], -1), (shards[2], 50)):
        content = bytearray(path.read_bytes())
        content[position] ^= 4
        path.write_bytes(content)
    code, output, errors = foundry("--verify", "--remote" if remote else "--local", folder)
    assert code == 2
    assert output == ""
    assert errors.count("is damaged") == 2
    assert shards[0].name in errors
    assert shards[2].name in errors
    assert shards[1].name not in errors


def test_verify_compares_the_index_with_the_card(mds):
    from foundry_sdk.data.card import DataCard

    folder = mds(30)
    shards = {path.name: "0" * 64 for path in folder.glob("shard*")}
    DataCard(kind="tokens", split="", samples=31, documents=1, shards=shards).write(folder)
    with pytest.raises(DataError) as error:
        inspect_data(local=str(folder), verify=True)
    message = str(error.value)
    assert "the index counts 30 samples, the card 31" in message
    assert message.count("in the index, " + "0" * 64) == len(shards)


def test_data_of_another_tokenizer_is_said_to_be(mds, bpe):
    from foundry_sdk.data.card import DataCard

    folder = mds(30)
    card = DataCard(
        kind="tokens", split="", samples=30, documents=1, tokenizer="x", tokenizer_sha256="0" * 64
    )
    card.write(folder)
    (notice,) = inspect_data(local=str(folder), tokenizer=bpe).notices
    assert "made with another tokenizer, 'x'" in notice


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to inspect"),
        (["a", "--local", "b"], "both PATH (a) and --local (b)"),
        (["/no/such/data"], "there is no such folder"),
    ],
)
def test_mistakes_are_explained(foundry, words, message):
    code, _, errors = foundry(*words)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_broken_index_is_named(foundry, mds):
    folder = mds(8)
    values = json.loads((folder / "index.json").read_text())
    values["shards"][0]["raw_data"]["basename"] = "../x"
    (folder / "index.json").write_text(json.dumps(values))
    code, _, errors = foundry(folder)
    assert code == 2
    assert f"{folder / 'index.json'}: shards[0].raw_data.basename: found '../x'" in errors
