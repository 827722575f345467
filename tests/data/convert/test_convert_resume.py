"""A killed conversion goes on to the same bytes, and half a folder is never taken for a whole."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.data import convert_json, convert_text
from foundry_sdk.errors import DataError, RunError

DRIVER = """
import sys
from foundry_sdk.data import convert_json, convert_text
from foundry_sdk.data.convert import jsonlines, run, textfiles, units
for module in (jsonlines, run, textfiles, units):
    module.UNIT = 20_000
kind, source, out, tokenizer, workers = sys.argv[1:]
size_limit = 1_000 if kind == "no_wrap" else 20_000
options = dict(size_limit=size_limit, resume=True, num_workers=int(workers))
if tokenizer:
    options |= dict(concat_tokens=64, tokenizer=tokenizer, eos_text="<|endoftext|>",
                    no_wrap=kind == "no_wrap", compression="zstd")
if kind == "text":
    convert_text(input_folder=source, output_folder=out + "/train", **options)
else:
    convert_json(path=source, out_root=out, **options)
"""


def start(
    kind: str, source: Path, out: Path, tokenizer: str, *, workers: int = 2, fault: str = ""
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DRIVER, kind, str(source), str(out), tokenizer, str(workers)]
    return subprocess.Popen(
        command, env={**os.environ, "FOUNDRY_FAULT": fault, "OMP_NUM_THREADS": "1"}
    )


def finish(*args: Any, **kwargs: Any) -> None:
    assert start(*args, **kwargs).wait(timeout=120) == 0


@pytest.fixture
def source(request: pytest.FixtureRequest, lines: Path, texts: list[str], tmp_path: Path) -> Path:
    if request.param != "text":
        return lines
    for number, text in enumerate(texts):
        path = tmp_path / "texts" / f"{number:03}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "texts"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        pytest.param("json", "json", marks=pytest.mark.slow),
        pytest.param("no_wrap", "json", marks=pytest.mark.slow),
        pytest.param("text", "text", marks=pytest.mark.slow),
    ],
    indirect=["source"],
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    *, kind: str, source: Path, tmp_path: Path, tokenizer_folder: str, digests: Any
) -> None:
    finish(kind, source, tmp_path / "whole", tokenizer_folder, workers=1)
    expected = digests(tmp_path / "whole")
    assert len(expected) > 5

    kills = 0
    out = tmp_path / "killed"
    for nth in [3, 6, 5, 40]:  # a process reaches three moments a shard
        process = start(kind, source, out, tokenizer_folder, fault=f"convert.*:{nth}:kill")
        if process.wait(timeout=120) == 0:
            break
        kills += 1
        whole = (out / "train" / "index.json").is_file()
        assert not whole or digests(out / "train") == digests(tmp_path / "whole" / "train")
    finish(kind, source, out, tokenizer_folder)
    assert kills > 2
    assert digests(out) == expected


@pytest.mark.slow
def test_moments_from_the_first_to_the_last_write_survive_a_kill(
    *, lines: Path, tmp_path: Path, tokenizer_folder: str, digests: Any
) -> None:
    """The first ones one by one, then every eleventh, as each takes seconds."""
    finish("json", lines, tmp_path / "whole", tokenizer_folder)
    expected = digests(tmp_path / "whole")
    for nth in itertools.chain(range(1, 6), range(6, 1000, 11)):
        out = tmp_path / str(nth)
        process = start("json", lines, out, tokenizer_folder, fault=f"convert.*:{nth}:kill")
        if process.wait(timeout=120) == 0:
            break
        finish("json", lines, out, tokenizer_folder)
        assert digests(out) == expected
    assert nth > 20


@pytest.mark.slow
def test_killed_at_random_times_it_goes_on_to_the_same_bytes(
    *, lines: Path, tmp_path: Path, tokenizer_folder: str, digests: Any
) -> None:
    finish("json", lines, tmp_path / "whole", tokenizer_folder)
    moments = random.Random(7)  # noqa: S311
    for _ in range(3):
        process = start("json", lines, tmp_path / "killed", tokenizer_folder)
        time.sleep(moments.uniform(0.5, 3.0))
        process.kill()
        process.wait()
    finish("json", lines, tmp_path / "killed", tokenizer_folder)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_text_samples_go_on_too(*, lines: Path, tmp_path: Path, digests: Any) -> None:
    finish("json", lines, tmp_path / "whole", "")
    for nth in (4, 2, 7):
        start("json", lines, tmp_path / "killed", "", fault=f"convert.*:{nth}:kill").wait()
    finish("json", lines, tmp_path / "killed", "")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_workers_end_with_their_parent(
    *, tmp_path: Path, tokenizer_folder: str, write_lines: Any, texts: list[str]
) -> None:
    source = write_lines(tmp_path / "many.jsonl", texts * 40)
    process = start("json", source, tmp_path / "out", tokenizer_folder)
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        children = children_of(process.pid)
    process.kill()
    process.wait()
    assert len(children) == 2
    while any(is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(child) for child in children)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    ]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def unfinished(lines: Path, tmp_path: Path) -> Path:
    process = start("json", lines, tmp_path / "out", "", fault="convert.*:6:kill")
    assert process.wait(timeout=60) != 0
    return lines


def test_an_unfinished_conversion_needs_a_word(unfinished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unfinished conversion with the same.*--resume"):
        convert_json(path=unfinished, out_root=tmp_path / "out", size_limit=20_000)


def test_other_arguments_do_not_go_on(unfinished: Path, tmp_path: Path, digests: Any) -> None:
    with pytest.raises(DataError, match=r"other arguments or input \(size_limit 20000 → 30000\)"):
        convert_json(path=unfinished, out_root=tmp_path / "out", size_limit=30_000, resume=True)
    convert_json(path=unfinished, out_root=tmp_path / "out", size_limit=30_000, overwrite=True)
    convert_json(path=unfinished, out_root=tmp_path / "new", size_limit=30_000)
    assert digests(tmp_path / "out") == digests(tmp_path / "new")


def test_an_input_that_has_changed_does_not_go_on(unfinished: Path, tmp_path: Path) -> None:
    with unfinished.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"other arguments or input \(files "):
        convert_json(path=unfinished, out_root=tmp_path / "out", size_limit=20_000, resume=True)


def test_a_finished_conversion(lines: Path, tmp_path: Path, digests: Any) -> None:
    first = convert_json(path=lines, out_root=tmp_path)
    before = digests(tmp_path / "train")
    with pytest.raises(DataError, match=r"not empty.*--overwrite"):
        convert_json(path=lines, out_root=tmp_path)
    with pytest.raises(DataError, match=r"another conversion.*--overwrite"):
        convert_json(path=lines, out_root=tmp_path, resume=True, compression="zstd")
    assert convert_json(path=lines, out_root=tmp_path, resume=True) == first
    assert digests(tmp_path / "train") == before
    convert_json(path=lines, out_root=tmp_path, overwrite=True, compression="zstd")
    assert sorted(path.suffix for path in (tmp_path / "train").iterdir()) == [
        ".json",
        ".json",
        ".zstd",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_finished_data_of_an_input_that_has_changed(lines: Path, tmp_path: Path) -> None:
    first = convert_json(path=lines, out_root=tmp_path)
    content = lines.read_bytes()
    lines.write_bytes(content)  # touched only
    assert convert_json(path=lines, out_root=tmp_path, resume=True) == first
    lines.write_bytes(content.replace(b"import", b"report", 1))
    with pytest.raises(DataError, match=r"another conversion.*--overwrite"):
        convert_json(path=lines, out_root=tmp_path, resume=True)


def test_the_card_does_not_depend_on_when_and_where(
    lines: Path, tmp_path: Path, digests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"here": 1_000_000_000, "there": 1_500_000_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "docs.jsonl").write_bytes(lines.read_bytes())
        os.utime(tmp_path / name / "docs.jsonl", (seconds, seconds))
        monkeypatch.chdir(tmp_path / name)
        convert_json(path="docs.jsonl", out_root="out")
    assert digests(tmp_path / "here" / "out") == digests(tmp_path / "there" / "out")


def test_overwrite_deletes_no_files_that_are_not_its_own(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "train").mkdir(parents=True)
    precious = tmp_path / "out" / "train" / "thesis.tex"
    precious.write_text("years of work")
    with pytest.raises(DataError, match=r"no shards \(thesis\.tex\)"):
        convert_json(path=lines, out_root=tmp_path / "out", overwrite=True)
    assert precious.read_text() == "years of work"


def test_two_conversions_do_not_share_a_folder(lines: Path, tmp_path: Path) -> None:
    process = start("json", lines, tmp_path / "out", "", fault="convert.*:5:hang")
    try:
        state = tmp_path / "out" / ".train.partial" / "state.json"
        deadline = time.monotonic() + 60
        while not state.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(DataError, match="another conversion is writing"):
            convert_json(path=lines, out_root=tmp_path / "out", overwrite=True)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", ["enospc", "eio"])
@pytest.mark.parametrize("point", ["shard:3", "carry:1", "state:1", "state:2", "index:1"])
def test_a_disk_that_refuses_loses_nothing(
    *,
    lines: Path,
    tmp_path: Path,
    digests: Any,
    fault: str,
    point: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_json(path=lines, out_root=tmp_path / "whole", size_limit=20_000)
    from foundry_sdk import faultpoints

    faultpoints._reached.clear()
    monkeypatch.setenv("FOUNDRY_FAULT", f"convert.{point}:{fault}")
    with pytest.raises(RunError, match=r"\.train\.partial: cannot be written .*--resume"):
        convert_json(path=lines, out_root=tmp_path / "out", size_limit=20_000)
    assert not (tmp_path / "out" / "train").exists()
    monkeypatch.delenv("FOUNDRY_FAULT")
    convert_json(path=lines, out_root=tmp_path / "out", size_limit=20_000, resume=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


CONVERSIONS: dict[str, Callable[[Path, Path], object]] = {
    "a.jsonl": lambda path, out: convert_json(path=path, out_root=out),
    "a.txt": lambda path, out: convert_text(input_folder=path, output_folder=out),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_file_that_cannot_be_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_text('{"text": "a"}\n')
    open_any = Path.open

    def open_others(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return open_any(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_others)
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(Permission denied\)"):
        CONVERSIONS[name](path, tmp_path / "out")


def test_a_carry_that_was_damaged_is_noticed(lines: Path, tmp_path: Path) -> None:
    start("json", lines, tmp_path / "out", "", fault="convert.shard:4:kill").wait()
    partial = tmp_path / "out" / ".train.partial"
    carry = json.loads((partial / "state.json").read_text())["carry"]
    path = partial / carry["file"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"carry.*damaged"):
        convert_json(path=lines, out_root=tmp_path / "out", size_limit=20_000, resume=True)


def test_a_damaged_shard_of_an_unfinished_conversion_is_noticed(
    lines: Path, tmp_path: Path
) -> None:
    start("json", lines, tmp_path / "out", "", fault="convert.shard:4:kill").wait()
    shard = tmp_path / "out" / ".train.partial" / "data" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"shard\.00000\.mds.*damaged"):
        convert_json(path=lines, out_root=tmp_path / "out", size_limit=20_000, resume=True)


def test_text_files_that_are_resumed_are_hashed_whole(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.txt").write_text(name * 100)
    card = convert_text(input_folder=tmp_path / "in", output_folder=tmp_path / "out")
    assert [source.sha256 for source in card.sources] == [
        hashlib.sha256((name * 100).encode()).hexdigest() for name in "abc"
    ]
