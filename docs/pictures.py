"""Draws what finetuning batches hold and which tokens a model lets see each other.

The batches are the loader's and the models are built as in a run: nothing is drawn by hand.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import datasets
import torch
from drawing import (
    DOCUMENTS,
    INK,
    LEARNED,
    PADDING,
    READ,
    matrix,
    new_axes,
    new_figure,
    running_text,
    svg,
    table,
)
from matplotlib.figure import Figure

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.data.contract import LoaderContext, TokenizerSpec
from foundry_sdk.data.finetuning.spec import FinetuningDatasetSpec, FinetuningDataSpec
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.models.huggingface.spec import HFSeq2SeqSpec
from foundry_sdk.models.mpt.options import AttentionSpec
from foundry_sdk.models.mpt.spec import MPTSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTIONS: Final = (
    {"prompt": "Colour of snow?", "response": " It is white."},
    {"prompt": "Of coal?", "response": " Black."},
    {"prompt": "Of grass?", "response": " It is green."},
)
CHAT: Final = (
    ("user", "What colour is snow?"),
    ("assistant", "It is white."),
    ("user", "And coal?"),
    ("assistant", "That is black."),
)
_WORDS: Final = r"<\|?\w+\|?>|\n| ?[^\s<]+"


def pictures() -> dict[str, str]:
    """Return the SVG text of each picture by file name."""
    datasets.disable_progress_bars()
    # rows are as wide as a picture can be, which is no good width for a GPU
    logging.getLogger("foundry_sdk").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(folder=Path(folder), tokenizer=word_tokenizer(Path(folder) / "words"))
        return {
            "prompt-response.svg": svg(prompt_response(desk)),
            "chat.svg": svg(chat(desk)),
            "packing.svg": svg(packing(desk)),
            "encoder-decoder.svg": svg(encoder_decoder(desk)),
        }


@attrs.frozen(kw_only=True)
class Desk:
    """Where examples are turned into batches."""

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"

    def batch(
        self,
        rows: Sequence[Any],
        *,
        width: int,
        batch_rows: int = 1,
        encoder_decoder: bool = False,
        **options: Any,
    ) -> Batch:
        """Return the first batch that the loader makes of ``rows``."""
        file = self.folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = FinetuningDatasetSpec(
            hf_name="json",
            split="train",
            hf_kwargs={"data_files": str(file), "cache_dir": str(self.folder / "arrow")},
            cache_dir=str(self.folder / "tokens"),
            decoder_only_format=not encoder_decoder,
            **options,
        )
        context = LoaderContext(
            tokenizer=self.tokenizer,
            rank=0,
            world_size=1,
            device_batch=batch_rows,
            max_seq_len=width,
            seed=17,
            training=True,
            encoder_decoder=encoder_decoder,
            isolates_documents=not encoder_decoder,
        )
        source = FinetuningDataSpec(dataset=dataset, pin_memory=False).build(context)
        try:
            return next(iter(source))
        finally:
            source.close()

    def words(self, ids: Iterable[Any]) -> list[str]:
        """Return each token as it is shown: ``↵`` is a line break, ``$`` ends a sequence."""
        signs = {"\n": "↵", "<eos>": "$", "<pad>": "·"}
        texts = [str(self.tokenizer.convert_ids_to_tokens(int(each))) for each in ids]
        return [signs.get(text, text.strip()) for text in texts]


def word_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return a tokenizer whose tokens are words, so that they can be read in a picture."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    texts = [part for row in QUESTIONS for part in row.values()]
    texts += [part for message in CHAT for part in message] + ["<|im_start|>", "<|im_end|>", "\n"]
    found = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
    known = {word: number for number, word in enumerate(["<eos>", "<pad>", *dict.fromkeys(found)])}
    inner = Tokenizer(models.WordLevel(known, unk_token="<pad>"))  # noqa: S106 - a token of text
    inner.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        eos_token="<eos>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
    )
    tokenizer.save_pretrained(str(folder))
    return load_tokenizer(TokenizerSpec(name=str(folder)))


# --- the four pictures ---


def prompt_response(desk: Desk) -> Figure:
    """Draw one padded row: ids, and labels under two choices of what is learned."""
    row = QUESTIONS[0]
    learned = desk.batch([row], width=10)
    all_of_it = desk.batch([row], width=10, target_prompts="all")
    ids = desk.words(learned.input_ids[0])
    real = _mask(learned)
    lines = [
        ("position", [str(place) for place in range(10)], [PADDING] * 10),
        ("input_ids", ids, [READ if each else PADDING for each in real]),
        ("labels (target_prompts: none)", *_labels(desk, learned)),
        ("labels (target_prompts: all)", *_labels(desk, all_of_it)),
        ("attention_mask", [str(int(each)) for each in real], [PADDING] * 10),
    ]
    figure, axes = new_figure(9.2, 2.3)
    table(axes, lines, faint={"position", "attention_mask"})
    return figure


def chat(desk: Desk) -> Figure:
    """Draw a chat of four messages once for each choice of what is learned."""
    row = {"messages": [{"role": role, "content": text} for role, text in CHAT]}
    choices: list[dict[str, Any]] = [
        {"target_responses": "last"},
        {"target_responses": "all"},
        {"target_responses": "last", "target_prompts": "all"},
        {"target_responses": "all", "target_prompts": "length>=11"},
    ]
    figure, axes = new_figure(9.6, 3.9)
    for number, choice in enumerate(choices):
        batch = desk.batch([row], width=60, pad_to_longest=True, **choice)
        title = ", ".join(f"{key}: {value}" for key, value in choice.items())
        running_text(
            axes,
            desk.words(batch.input_ids[0]),
            _is_target(batch),
            corner=(55.0 * (number % 2), 8.0 * (number // 2)),
            title=title,
        )
    axes.set_xlim(-0.5, 108)
    axes.set_ylim(14.4, -1.4)
    return figure


def packing(desk: Desk) -> Figure:
    """Draw a row of several examples, and which tokens see each other with and without a mask."""
    width = 18
    batch = desk.batch(QUESTIONS, width=width, packing_ratio=3)
    documents = _first_row(batch.sequence_ids)
    colours = [PADDING if each < 0 else DOCUMENTS[each] for each in documents]
    lines = [
        ("input_ids", desk.words(batch.input_ids[0]), colours),
        ("sequence_ids", [str(each) for each in documents], colours),
        ("position_ids", [str(each) for each in _first_row(batch.position_ids)], colours),
        ("labels", *_labels(desk, batch)),
    ]
    figure = Figure(figsize=(9.6, 6.4))
    top = new_axes(figure, (0.0, 0.72, 1.0, 0.28))
    table(top, lines)
    words = desk.words(batch.input_ids[0])
    bare = attrs.evolve(batch, sequence_ids=None, position_ids=None)
    panels = (
        (0.1, True, batch, "a packed row: examples are apart"),
        (0.6, False, bare, "without isolation, which is refused"),
    )
    for left, isolates, given, title in panels:
        axes = new_axes(figure, (left, 0.02, 0.37, 0.54))
        seen = influence(_mpt(desk, width, isolates=isolates), given)
        matrix(axes, seen, words, words, colours)
        axes.set_title(title, fontsize=9, color=INK, pad=40)
    return figure


def encoder_decoder(desk: Desk) -> Figure:
    """Draw what encoder and decoder get of one example, and what each target depends on."""
    batch = desk.batch(QUESTIONS[:1], width=8, encoder_decoder=True)
    read, written = desk.words(batch.input_ids[0]), desk.words(_first_row(batch.decoder_input_ids))
    labels, colours = _labels(desk, batch)
    grey = [READ if each else PADDING for each in _mask(batch)]
    lines = [
        ("input_ids (encoder)", read, grey),
        ("attention_mask", [str(int(each)) for each in _mask(batch)], [PADDING] * len(read)),
        ("decoder_input_ids", written, [PADDING if c == PADDING else READ for c in colours]),
        ("labels", labels, colours),
    ]
    figure = Figure(figsize=(9.2, 4.9))
    table(new_axes(figure, (0.0, 0.66, 0.98, 0.34)), lines, faint={"attention_mask"})
    axes = new_axes(figure, (0.255, 0.02, 0.7, 0.42))
    seen = influence(_t5(desk), batch)
    of_parts = [DOCUMENTS[0]] * len(read) + [DOCUMENTS[1]] * len(written)
    matrix(axes, seen, labels, [*read, *written], of_parts)
    for middle, part in ((3.5, "input_ids (encoder)"), (11.5, "decoder_input_ids")):
        axes.text(middle, -2.9, part, ha="center", va="bottom", fontsize=9, color=INK)
    return figure


# --- what depends on what ---


def influence(model: Any, batch: Batch) -> torch.Tensor:
    """Return which outputs change when a token is replaced by another.

    Returns:
        bool (outputs, inputs), of the first row; the inputs of an encoder-decoder are those of the
        encoder and then those of the decoder.
    """

    def outputs(changed: Batch) -> torch.Tensor:
        with torch.no_grad():
            hidden: torch.Tensor = model(changed)
        return hidden[0]

    before = outputs(batch)
    columns = []
    for name in ("input_ids", "decoder_input_ids"):
        ids = getattr(batch, name)
        if ids is None:
            continue
        for place in range(ids.shape[1]):
            other = ids.clone()
            other[0, place] = (ids[0, place] + 1) % model.vocab_size
            after = outputs(attrs.evolve(batch, **{name: other}))
            columns.append((after - before).abs().amax(-1) > 1e-6)
    return torch.stack(columns, dim=1)


def _mpt(desk: Desk, width: int, *, isolates: bool) -> Any:
    spec = MPTSpec(
        d_model=32,
        n_heads=2,
        n_layers=2,
        max_seq_len=width,
        vocab_size=len(desk.tokenizer),
        attn_config=AttentionSpec(attn_impl="torch", attn_uses_sequence_id=isolates),
    )
    return _ready(spec.build(device="cpu"))


def _t5(desk: Desk) -> Any:
    folder = desk.folder / "t5"
    folder.mkdir()
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    config = {"model_type": "t5", **sizes, "vocab_size": len(desk.tokenizer)}
    (folder / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": 1}))
    spec = HFSeq2SeqSpec(pretrained_model_name_or_path=str(folder), pretrained=False)
    return _ready(spec.build(device="cpu"))


def _ready(model: Any) -> Any:
    model.init_weights(seed=17)
    return model.eval()


# --- what a batch says ---


def _first_row(values: torch.Tensor | None) -> list[int]:
    """Return the first row of a part of the batch that is there in these pictures."""
    if values is None:
        raise ValueError("the batch has no such part")
    row: list[int] = values[0].tolist()
    return row


def _mask(batch: Batch) -> list[bool]:
    return [bool(each) for each in _first_row(batch.attention_mask)]


def _is_target(batch: Batch) -> list[bool]:
    """Return whether each token, at its own place, is learned."""
    return [False, *(batch.labels[0, :-1] != IGNORE_INDEX).tolist()]


def _labels(desk: Desk, batch: Batch) -> tuple[list[str], list[str]]:
    """Return the labels as words, and their colours."""
    labels = batch.labels[0]
    words = desk.words(labels.clamp(min=0))
    is_learned = (labels != IGNORE_INDEX).tolist()
    shown = [word if yes else "-100" for word, yes in zip(words, is_learned, strict=True)]
    return shown, [LEARNED if yes else PADDING for yes in is_learned]
