"""One rank of small runs of transformers models; the argument is a list in JSON."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

from fit_worker import Memory, MemorySpec

from foundry_sdk.batch import IGNORE_INDEX, Batch
from foundry_sdk.data.contract import BatchSource, DataSpec, LoaderContext, TokenizerSpec
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.huggingface import weights
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec, HFSeq2SeqSpec
from foundry_sdk.models.mpt.spec import MPTSpec
from foundry_sdk.optim.schedules import CosineWithWarmupSpec
from foundry_sdk.optim.specs import DecoupledAdamWSpec
from foundry_sdk.pretrainer import Pretrainer
from foundry_sdk.specs.run import FSDPSpec, PretrainSpec
from foundry_sdk.units import Duration


class Pairs(Memory):
    """Prompts with padding, and responses for a decoder."""

    def _batch(self, ids: torch.Tensor) -> Batch:
        plain = super()._batch(ids)
        mask = torch.ones_like(plain.input_ids, dtype=torch.bool)
        mask[:, 12:] = (ids % 2 == 0)[:, None]
        labels = plain.labels[:, 4:]
        begun = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=0)
        return attrs.evolve(
            plain,
            labels=labels,
            attention_mask=mask,
            decoder_input_ids=begun.masked_fill(begun == IGNORE_INDEX, 0),
        )


@attrs.frozen(kw_only=True)
class PairsSpec(DataSpec):
    """Rows made of numbers, for an encoder-decoder."""

    kind = "pairs"

    def build(self, context: LoaderContext) -> BatchSource:
        return Pairs(context, 40)


def main(arguments: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    read: list[weights.WeightFiles] = []

    class Counted(weights.WeightFiles):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            read.append(self)

    from foundry_sdk.models.huggingface import model

    model.WeightFiles = Counted  # type: ignore[misc]
    fused = arguments.get("fused", False)
    pairs = arguments.get("pairs", False)
    kind = MPTSpec if arguments.get("mpt") else HFSeq2SeqSpec if pairs else HFCausalLMSpec
    spec = PretrainSpec(
        model=kind(**arguments["model"]),
        tokenizer=TokenizerSpec(name=arguments["tokenizer"]),
        optimizer=DecoupledAdamWSpec(lr=1e-2, eps=1e-5),
        scheduler=CosineWithWarmupSpec(t_warmup=Duration.parse("3ba")),
        loss=FusedCrossEntropySpec() if fused else CrossEntropySpec(),
        train_loader=PairsSpec() if pairs else MemorySpec(rows=40),
        max_duration=Duration.parse("6ba"),
        max_seq_len=16,
        global_train_batch_size=8,
        device_train_microbatch_size=2,
        precision="fp32",
        fsdp_config=FSDPSpec(**arguments["fsdp"]) if arguments.get("fsdp") else None,
        run_name=arguments["name"],
        run_root=arguments["root"],
        save_interval=Duration.parse("6ba"),
        log_to_console=False,
    )
    result = Pretrainer(spec).fit()
    rank = os.environ.get("RANK", "0")
    counted = sum(files.bytes_read for files in read)
    (result.run_dir / f"bytes-{rank}.json").write_text(json.dumps(counted), encoding="utf-8")


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        os.environ["MASTER_PORT"] = each["port"]
        main(each)
