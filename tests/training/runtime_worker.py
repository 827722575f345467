"""One of two gloo ranks: prints, as JSON, what each collective gave."""

import json
import sys

from foundry_sdk.training.runtime import Runtime

runtime = Runtime.start(precision="fp32", timeout=60)
found = {
    "rank": runtime.rank,
    "world_size": runtime.world_size,
    "counts": runtime.sum_counts([runtime.rank + 1, 10]),
    "all_true": runtime.all_agree(True),
    "one_false": runtime.all_agree(runtime.rank == 0),
    "any": runtime.any_rank(runtime.rank == 1),
    "gathered": runtime.gather({"rank": runtime.rank, "text": "é" * runtime.rank}),
    "broadcast": runtime.broadcast(f"from {runtime.rank}"),
}
runtime.barrier()
runtime.close()
with open(f"{sys.argv[1]}/{found['rank']}.json", "w", encoding="utf-8") as file:
    json.dump(found, file)
