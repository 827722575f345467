"""Batches against a plain recomputation with the tokenizer, row by row."""

import random

import pytest
import torch

from foundry_sdk.errors import DataError


def fill(rows, width, value):
    return torch.tensor([[*row[:width], *[value] * (width - len(row))] for row in rows])


def by_hand(ids, targets, width, pad):
    """Return input_ids, labels and attention_mask of rows given as lists, padded on the right."""
    labels = [[*row[1:], -100] for row in targets]
    return (
        fill(ids, width, pad),
        fill(labels, width, -100)[:, :width],
        fill([[1] * len(row) for row in ids], width, 0).bool(),
    )


def all_batches(source):
    return list(iter(source))


def row_by_hand(tokenizer, row, *, eos, targets="none"):
    prompt = tokenizer(row["prompt"])["input_ids"]
    response = tokenizer(row["response"])["input_ids"]
    if response[-1] != eos:
        response = [*response, eos]
    return prompt + response, (prompt if targets == "all" else [-100] * len(prompt)) + response


@pytest.mark.parametrize("targets", ["none", "all"])
def test_prompts_and_responses_are_tokenized_apart_and_shifted_once(source, bpe, prompts, targets):
    rows, width = prompts(8), 32
    expected = [row_by_hand(bpe, row, eos=bpe.eos_token_id, targets=targets) for row in rows]
    ids = [pair[0][:width] for pair in expected]
    learned = [pair[1][:width] for pair in expected]
    input_ids, labels, mask = by_hand(ids, learned, width, bpe.pad_token_id)
    batches = all_batches(source(rows, length=width, target_prompts=targets))
    assert torch.equal(torch.cat([b.input_ids for b in batches]), input_ids)
    assert torch.equal(torch.cat([b.labels for b in batches]), labels)
    assert torch.equal(torch.cat([b.attention_mask for b in batches]), mask)
    assert torch.cat([b.sample_ids for b in batches]).tolist() == list(range(8))


def test_dolly_with_neox_equals_a_plain_recomputation(source, neox, dolly):
    rows, path = dolly
    width, eos = 128, neox.eos_token_id
    kept = []
    for number, row in enumerate(rows[:200]):
        ids, learned = row_by_hand(neox, row, eos=eos)
        if any(label != -100 for label in learned[:width]):
            kept.append((number, ids[:width], learned[:width]))
    built = source(
        hf_name="json", hf_kwargs={"data_files": str(path)}, split="train[:200]", length=width,
        batch=8, tokenizer=neox, loader={"drop_last": True},
    )  # fmt: skip
    batches = all_batches(built)
    assert len(batches) == len(kept) // 8
    seen = kept[: len(batches) * 8]
    pad = eos if neox.pad_token_id is None else neox.pad_token_id
    input_ids, labels, mask = by_hand([r[1] for r in seen], [r[2] for r in seen], width, pad)
    assert torch.equal(torch.cat([b.input_ids for b in batches]), input_ids)
    assert torch.equal(torch.cat([b.labels for b in batches]), labels)
    assert torch.equal(torch.cat([b.attention_mask for b in batches]), mask)
    assert torch.cat([b.sample_ids for b in batches]).tolist() == [r[0] for r in seen]
    dropped = built.describe()["sources"]["json:train[:200]"]["dropped"]
    assert sum(dropped.values()) == 200 - len(kept) > 0


def test_a_response_loses_its_bos_only_where_the_prompt_has_one_too(source, tmp_path, bpe_folder):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    batch = next(iter(source([{"prompt": "cat", "response": "dog"}], tokenizer=tokenizer, batch=1)))
    plain = AutoTokenizer.from_pretrained(bpe_folder)
    expected = [bos, *plain("cat")["input_ids"], *plain("dog")["input_ids"], plain.eos_token_id]
    assert batch.input_ids[0, : len(expected)].tolist() == expected
    assert (batch.input_ids[0] == bos).sum() == 1


CHAT = [
    {"role": "system", "content": "sit"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "the dog"},
    {"role": "user", "content": "on the mat and on the log"},
    {"role": "assistant", "content": "sat"},
]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def chatml(messages):
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        ({}, [False, False, False, True]),
        ({"target_responses": "all"}, [False, True, False, True]),
        ({"target_prompts": "all", "target_responses": "all"}, [True] * 4),
        ({"target_prompts": "length>=30"}, [True, False, False, True]),
    ],
)
def test_a_chat_becomes_slices_of_its_chatml_text(source, bpe, options, learned):
    first = chatml(CHAT[:2]) + "<|im_start|>assistant\n"
    slices = [
        first,
        "the dog<|im_end|>\n",
        "<|im_start|>user\non the mat and on the log<|im_end|>\n<|im_start|>assistant\n",
        "sat<|im_end|>\n",
    ]
    assert "".join(slices) == chatml(CHAT)
    parts = [bpe(text, add_special_tokens=False)["input_ids"] for text in slices]
    if "length>=30" in options.values():
        cut = sorted(len(part) for part in (parts[0], parts[2]))
        options = {"target_prompts": f"length>={cut[1]}"}
        learned = [len(parts[0]) == cut[1], False, len(parts[2]) == cut[1], True]
    parts[-1] = [*parts[-1], bpe.eos_token_id]
    ids = [i for part in parts for i in part]
    targets = [i if kept else -100 for part, kept in zip(parts, learned, strict=True) for i in part]
    batch = next(iter(source([{"messages": CHAT}], length=256, batch=1, **options)))
    expected = by_hand([ids], [targets], 256, bpe.pad_token_id)
    assert torch.equal(batch.input_ids, expected[0])
    assert torch.equal(batch.labels, expected[1])


def test_a_tokenizers_own_chat_template_is_used(source, bpe_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    tokenizer.chat_template = TEMPLATE
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    batch = next(iter(source([{"messages": CHAT}], length=256, batch=1, tokenizer=tokenizer)))
    ids = batch.input_ids[0][batch.attention_mask[0]]
    assert tokenizer.decode(ids) == whole
    learned = batch.labels[0][batch.labels[0] != -100]
    assert tokenizer.decode(learned) == "sat<eos>"  # its own end, none added


def test_a_template_that_rewrites_what_came_before_is_refused(source, bpe_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bpe_folder)
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(DataError, match="row 0: the tokenizer's chat template renders"):
        source([{"messages": CHAT}], tokenizer=tokenizer)


def test_an_encoder_decoder_reads_everything_before_the_last_response(source, bpe):
    rows = [{"prompt": "the cat " * 9, "response": "dog " * 19}, {"prompt": "a", "response": "b"}]
    width, eos, pad = 16, bpe.eos_token_id, bpe.pad_token_id
    batch = next(iter(source(rows, length=width, batch=2, encoder_decoder=True)))
    context = [bpe(row["prompt"])["input_ids"] for row in rows]
    answer = [bpe(row["response"])["input_ids"] for row in rows]
    assert len(context[0]) > width
    assert len(answer[0]) >= width
    context[0] = [*context[0][: width - 1], eos]
    answer = [[*answer[0][: width - 1], eos], [*answer[1], eos]]
    labels = fill(answer, width, -100)
    assert torch.equal(batch.input_ids, fill(context, width, pad))
    assert torch.equal(batch.labels, labels)
    before = torch.cat([torch.full((2, 1), pad), labels[:, :-1]], 1)
    assert torch.equal(batch.decoder_input_ids, before.masked_fill(before == -100, pad))


def test_what_has_nothing_to_learn_is_dropped_and_counted(source, bpe, caplog):
    rows = [
        {"prompt": "the cat", "response": "dog"},
        {"prompt": "", "response": "dog"},
        {"prompt": "cat", "response": ""},
        {"prompt": "the cat " * 50, "response": "dog"},
        {"prompt": "cat", "response": "the dog " * 50},
    ]
    built = source(rows, length=16, batch=2)
    (batch,) = all_batches(built)
    assert batch.sample_ids.tolist() == [0, 4]
    found = built.describe()["sources"]["json:train"]
    assert list(found["dropped"].values()) == [2, 1]
    assert found["cut"] == 1
    assert "2 of 5 examples are left out: an empty prompt or response" in caplog.text
    with pytest.raises(DataError, match=r"no example is left .*2 of 3 have an empty prompt"):
        source(rows[1:4], length=16)


def test_padding_to_the_longest_and_trimming(source, bpe, prompts):
    rows = prompts(12)
    longest = [
        max(len(row_by_hand(bpe, row, eos=bpe.eos_token_id)[0]) for row in rows[start : start + 4])
        for start in (0, 4, 8)
    ]
    widths = [b.input_ids.shape[1] for b in all_batches(source(rows, pad_to_longest=True))]
    assert widths == longest
    trimmed = source(rows, allow_pad_trimming=True)
    expected = [64, *(-(-each // 8) * 8 for each in longest[1:])]
    assert [b.input_ids.shape[1] for b in trimmed] == expected
    first_of_second_epoch = next(iter(trimmed)).input_ids.shape[1]
    assert first_of_second_epoch == -(-longest[0] // 8) * 8


def test_survey_agrees_with_stitching_each_example(tmp_path):
    """Lengths, drops and targets without reading tokens are those of the stitched rows."""
    import numpy as np

    from foundry_sdk.data.finetuning.options import Targets
    from foundry_sdk.data.finetuning.store import ExampleWriter, TokenizedExamples
    from foundry_sdk.data.finetuning.targets import stitch, stitch_apart, survey

    rng = random.Random(3)  # noqa: S311
    examples = [
        [
            tuple(
                np.array([rng.randrange(4) for _ in range(rng.choice([0, 1, 3, 9]))], np.int32)
                for _ in range(2)
            )
            for _ in range(rng.choice([0, 1, 1, 2, 3]))
        ]
        for _ in range(300)
    ]
    writer = ExampleWriter(tmp_path / "x")
    writer.append(examples[:7])
    writer.append(examples[7:])
    writer.finish({})
    stored = TokenizedExamples.read(tmp_path / "x")
    for prompts in ("none", "all", "length>=3"):
        for responses in ("last", "all"):
            targets = Targets(prompts=prompts, responses=responses)
            found = survey(stored, targets, eos=3, length=10, apart=False)
            expected = []
            for number, turns in enumerate(examples):
                if not turns or any(not len(part) for turn in turns for part in turn):
                    continue
                _, bare = stitch(turns, targets, eos=None, length=10)
                if (bare != -100).any():
                    ids, learned = stitch(turns, targets, eos=3, length=10)
                    expected.append((number, len(ids), int((learned != -100).sum())))
            assert found.kept.tolist() == [each[0] for each in expected]
            assert found.lengths.tolist() == [each[1] for each in expected]
            assert found.targets == sum(each[2] for each in expected)
            assert len(examples) - len(expected) == sum(found.dropped.values())
    apart = survey(stored, Targets(), eos=3, length=10, apart=True)
    rows = [stitch_apart(examples[n], eos=3, length=10) for n in apart.kept]
    assert apart.lengths.tolist() == [len(row[0]) for row in rows]
    assert apart.targets == sum(len(row[1]) for row in rows)
