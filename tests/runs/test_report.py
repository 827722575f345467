"""The page: whole by itself, escaped, with every curve and choice."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from foundry_sdk.checkpoint.layout import Manifest
from foundry_sdk.errors import RunError
from foundry_sdk.runs.plot import loss_curves, plot_loss
from foundry_sdk.runs.report import render_report, write_report

MakeRecord = Callable[..., Path]

_VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps text, tags and what is referred to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        self.references += [
            value for name, value in attrs if name in {"src", "href", "xlink:href"} and value
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_by_itself(make_record: MakeRecord) -> None:
    page = Page(render_report(make_record("a")))
    assert page.open == []
    # Pictures refer to parts of themselves, and to nothing else.
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)


def test_it_has_the_curves_and_what_was_chosen(make_record: MakeRecord) -> None:
    path = make_record("a", status="stopped", reason="early_stopper: enough")
    page = Page(render_report(path))
    # Loss with eval loss, learning rate, gradient norm, throughput, eval perplexity.
    assert page.tags.count("svg") == 5
    for text in (
        "stopped: early_stopper: enough",
        "torch, as there is no GPU",
        "d1ge57",
        "foundry train a.yaml",
        "attn_impl: torch",
        "foundry-sdk",
    ):
        assert text in page.text


def test_a_run_without_metrics_has_a_page(make_record: MakeRecord) -> None:
    page = Page(render_report(make_record("a", losses={}, status="failed", reason="no data")))
    assert "svg" not in page.tags
    assert "failed: no data" in page.text


def test_text_of_others_is_escaped(make_record: MakeRecord) -> None:
    evil = "<script>alert(1)</script>"
    path = make_record(
        "a", choices={evil: evil}, reason=evil, command=[evil], spec={evil: {"x": evil}}
    )
    table = {"step": 5, "time": 1.0, "name": evil, "columns": [evil], "rows": [[evil]]}
    (path / "tables.jsonl").write_text(json.dumps(table) + "\n")
    page = Page(render_report(path))
    assert "script" not in page.tags
    assert page.text.count(evil) >= 8


def test_checkpoints_are_listed_with_their_state(make_record: MakeRecord) -> None:
    path = make_record("a")
    whole, broken = (path / "checkpoints" / f"step-00000{step}" for step in (5, 9))
    for folder in (whole, broken):
        folder.mkdir(parents=True)
    manifest = Manifest(step=5, world_size=1, versions={}, files={}, tensors={})
    (whole / "manifest.json").write_bytes(manifest.render())
    text = Page(render_report(path)).text
    assert "step-000005" in text
    assert "the checkpoint is not whole" in text


def test_the_file_is_written_where_it_is_wanted(make_record: MakeRecord, tmp_path: Path) -> None:
    path = make_record("a")
    out = write_report(path, tmp_path / "page.html")
    assert out.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(path, tmp_path / "nowhere" / "page.html")
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path, tmp_path / "page.html")


def test_loss_curves_have_the_logged_points(make_record: MakeRecord) -> None:
    from foundry_sdk.loggers.jsonl import read_metrics

    path = make_record("a", losses={1: 4.0, 5: float("nan"), 10: 2.0})
    curves = loss_curves(read_metrics(path / "metrics.jsonl"))
    assert curves == {"train": ([1, 10], [4.0, 2.0]), "eval/c4": ([10], [2.5])}


def test_the_plot_is_a_picture_with_something_on_it(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    path = make_record("a")
    assert plot_loss(path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    # The curves are coloured; axes and text are grey.
    coloured = np.ptp(pixels, axis=2) > 60
    assert pixels.shape[0] > 300
    assert coloured.sum() > 300
    assert not plot_loss(tmp_path / "absent.jsonl", tmp_path / "absent.png")
    assert not (tmp_path / "absent.png").exists()
