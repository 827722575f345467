"""One rank of a small run with Muon: folder, tokenizer, data, steps, whether to shard."""

import json
import sys

import torch
from foundry_sdk_muon import MuonMonitorSpec, MuonSpec

from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.data.text import TextDatasetSpec, TextDataSpec
from foundry_sdk.optim.schedules import ConstantWithWarmupSpec
from foundry_sdk.pretrainer import Pretrainer
from foundry_sdk.specs.run import FSDPSpec, PretrainSpec
from foundry_sdk.testing import tiny_mpt_spec
from foundry_sdk.units import Duration


def main() -> None:
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    dataset = TextDatasetSpec(local=given["data"], split=None, shuffle=True)
    Pretrainer(
        PretrainSpec(
            model=tiny_mpt_spec(),
            tokenizer=TokenizerSpec(name=given["tokenizer"]),
            optimizer=MuonSpec(lr=0.02, adamw_lr=1e-2),
            scheduler=ConstantWithWarmupSpec(t_warmup=Duration.parse("2ba")),
            train_loader=TextDataSpec(dataset=dataset, num_workers=0),
            max_duration=given["duration"],
            max_seq_len=16,
            global_train_batch_size=8,
            device_train_microbatch_size=4,
            precision="fp32",
            callbacks=(MuonMonitorSpec(interval=5),),
            fsdp_config=FSDPSpec() if given["sharded"] else None,
            run_root=given["root"],
            run_name=given["name"],
            save_interval="10ba",
            autoresume=True,
            log_to_console=False,
        )
    ).fit()


if __name__ == "__main__":
    main()
