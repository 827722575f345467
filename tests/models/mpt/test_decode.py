"""Decoding with a cache equals reading the whole sequence at once."""

from typing import Any

import pytest
import torch

from foundry_sdk.batch import Batch
from foundry_sdk.models.mpt.options import AttentionSpec, AttentionTemperatureSpec
from foundry_sdk.models.mpt.spec import MPTSpec

OPTIONS = [
    {},
    {"rope": True},
    {"alibi": True},
    {"sliding_window_size": 3},
    {"attn_logit_softcapping": 1.5},
    {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "rope": True},
    {"qk_ln": True, "clip_qkv": 0.5},
    {"attn_temperature_tuning": AttentionTemperatureSpec(floor_scale=4, attn_scale=0.5)},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
@torch.no_grad()
def test_token_by_token_and_rows_of_unequal_length(option: dict[str, Any]) -> None:
    spec = MPTSpec(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=16,
        vocab_size=31,
        attn_config=AttentionSpec(attn_impl="torch", **option),
    )
    model = spec.build(device="cpu").eval()
    model.init_weights(3)
    model.double()
    ids = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 4])  # of the prompts; the second row is padded with token 0
    prompt = ids[:, :7].clone()
    prompt[1, 4:] = 0
    cache = model.new_cache(2, 16)
    read = model.decode(prompt, torch.arange(7).expand(2, -1), cache)
    steps = [read[torch.arange(2), lengths - 1]]
    for step in range(5):
        at = lengths + step
        token = ids[torch.arange(2), at]
        steps.append(model.decode(token[:, None], at[:, None], cache)[:, 0])
    for row in range(2):
        length = int(lengths[row]) + 5
        sequence = ids[row : row + 1, :length]
        whole = model(Batch(input_ids=sequence, labels=sequence))[0]
        decoded = torch.stack([step[row] for step in steps])
        torch.testing.assert_close(decoded, whole[int(lengths[row]) - 1 :])
