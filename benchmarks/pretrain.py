"""How fast a preset trains here, with everything that a real run has.

Runs ``Pretrainer`` on an example's YAML for a number of steps, reads what ``speed_monitor`` and
``memory_monitor`` logged, and writes ``results/pretrain-DEVICE.json``:

    python benchmarks/pretrain.py DATA TOKENIZER mpt-125m:batch=64,microbatch=32 mpt-1b:batch=16
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _record import write

EXAMPLES = Path(__file__).parents[1] / "examples" / "pretrain"
SHAPES = Path(__file__).parent / "shapes"
WARM_UP = 10


def measure(case: str, data: Path, tokenizer: str, steps: int, root: Path) -> dict[str, Any]:
    """Train one preset; return its row."""
    import torch

    from foundry_sdk.pretrainer import Pretrainer

    preset, _, rest = case.partition(":")
    options = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
    batch = options.pop("batch")
    microbatch = options.pop("microbatch", batch)
    name = f"{preset}-{len(list(root.iterdir()))}"
    overrides = [
        f"variables.data_local={data}",
        f"variables.tokenizer_name={tokenizer}",
        f"global_train_batch_size={batch}",
        f"device_train_microbatch_size={microbatch}",
        f"max_duration={steps}ba",
        "scheduler.t_warmup=10ba",
        "eval_loader=null",
        "save_weights_only=true",
        "callbacks.speed_monitor.window_size=1",
        "train_loader.num_workers=4",
        "log_to_console=false",
        f"run_root={root}",
        f"run_name={name}",
        *(f"{key}={value}" for key, value in options.items()),
    ]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    known = [folder / f"{preset}.yaml" for folder in (EXAMPLES, SHAPES)]
    result = Pretrainer.from_yaml(next(p for p in known if p.is_file()), overrides).fit()
    total = time.perf_counter() - started
    lines = (result.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    run = json.loads((result.run_dir / "run.json").read_text("utf-8"))
    steady = [line for line in metrics if line["step"] > WARM_UP]
    rates = [line["throughput/tokens_per_sec"] for line in steady]
    row = {
        "case": case,
        "steps": steps,
        "loss_first": metrics[0]["loss/train/total"],
        "loss_last": metrics[-1]["loss/train/total"],
        "tokens_per_second": round(statistics.median(rates)),
        "tokens_per_second_quartiles": [round(q) for q in statistics.quantiles(rates, n=4)],
        "data_wait_share": round(
            statistics.mean(line["throughput/data_wait_share"] for line in steady), 4
        ),
        "run_seconds": round(total, 1),
        "until_first_step_seconds": round(first_step_seconds(run, metrics), 1),
        "choices": run["choices"],
    }
    shares = [line["throughput/device/mfu"] for line in steady if "throughput/device/mfu" in line]
    if shares:
        row["mfu_percent"] = round(100 * statistics.median(shares), 2)
    if torch.cuda.is_available():
        row["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    print(json.dumps(row), flush=True)
    return row


def first_step_seconds(run: dict[str, Any], metrics: list[dict[str, Any]]) -> float:
    """Return the seconds from the record's start, before the first step, to that step's end."""
    from datetime import datetime

    return metrics[0]["time"] - datetime.fromisoformat(run["attempts"][-1]["started"]).timestamp()


def main() -> None:
    """Measure each case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/, as foundry data convert makes")
    parser.add_argument("tokenizer")
    parser.add_argument("cases", nargs="+", help="PRESET:batch=N[,microbatch=M][,KEY=VALUE]…")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--results", type=Path, help="folder for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        rows = [
            measure(case, arguments.data, arguments.tokenizer, arguments.steps, Path(root))
            for case in arguments.cases
        ]
    print(write("pretrain", rows, arguments.results))


if __name__ == "__main__":
    main()
