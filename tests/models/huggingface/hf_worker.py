"""One rank of small runs of transformers models; the argument is a list in JSON."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

from fit_worker import MemorySpec

from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.losses.specs import CrossEntropySpec, FusedCrossEntropySpec
from foundry_sdk.models.huggingface import weights
from foundry_sdk.models.huggingface.spec import HFCausalLMSpec
from foundry_sdk.optim.schedules import CosineWithWarmupSpec
from foundry_sdk.optim.specs import DecoupledAdamWSpec
from foundry_sdk.pretrainer import Pretrainer
from foundry_sdk.specs.run import FSDPSpec, PretrainSpec
from foundry_sdk.units import Duration


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
    spec = PretrainSpec(
        model=HFCausalLMSpec(**arguments["model"]),
        tokenizer=TokenizerSpec(name=arguments["tokenizer"]),
        optimizer=DecoupledAdamWSpec(lr=1e-2),
        scheduler=CosineWithWarmupSpec(t_warmup=Duration.parse("3ba")),
        loss=FusedCrossEntropySpec() if fused else CrossEntropySpec(),
        train_loader=MemorySpec(rows=40),
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
