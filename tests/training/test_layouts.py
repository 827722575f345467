"""One, two and four processes, any microbatch: the same samples, losses and gradient norms.

Each run is ``foundry train`` on real loaders; what a step was made from is in the run's ledger.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.callbacks.ledger import final_steps, read_ledger
from foundry_sdk.drill.commands import WarmCommands
from foundry_sdk.drill.material import write_material

pytestmark = pytest.mark.slow
CLOSE = 1e-6

COMMON = [
    "callbacks.sample_ledger={}",
    "model.emb_pdrop=0.0",
    "optimizer.lr=0.001",
    "scheduler={name: constant_with_warmup, t_warmup: 4ba}",
    "global_train_batch_size=16",
    "save_interval=1000ba",
    "log_to_console=false",
]
FINETUNING = """
train_loader:
  name: finetuning
  dataset:
    hf_name: json
    split: train
    hf_kwargs: {{data_files: {folder}/pairs.jsonl}}
    cache_dir: {folder}/cache
    shuffle: true
    shuffle_seed: 3
    allow_pad_trimming: true
  drop_last: false
  num_workers: 0
"""


class Runs:
    """Runs of one spec, and what their steps were made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = WarmCommands(folder / "server.txt")
        self.material = write_material(folder, steps=50, save_every=1000)
        self.command(self.material.conversion(self.material.data))
        self.finetuning = self._finetuning()

    def _finetuning(self) -> Path:
        generator = random.Random(4)  # noqa: S311
        with (self.folder / "pairs.jsonl").open("w") as file:
            for _ in range(35):  # two whole batches of 16, and one of 3
                prompt, response = (
                    " ".join(f"w{generator.randrange(62)}" for _ in range(generator.randint(1, 7)))
                    for _ in range(2)
                )
                file.write(json.dumps({"prompt": prompt, "response": response}) + "\n")
        head, _, rest = self.material.spec.read_text().partition("train_loader:")
        _, _, tail = rest.partition("num_workers: 0\n")
        path = self.folder / "finetuning.yaml"
        path.write_text(head + FINETUNING.format(folder=self.folder) + tail)
        return path

    def command(self, arguments: list[str], processes: int = 1) -> None:
        output = self.folder / "output.txt"
        ended = self.commands.run(
            arguments, environment={}, output=output, seconds=240, processes=processes
        )
        assert ended.code == 0, output.read_text()[-3000:]

    def train(
        self,
        name: str,
        *,
        processes: int,
        microbatch: int,
        spec: Path | None = None,
        **options: Any,
    ) -> None:
        given = [f"{key}={json.dumps(value)}" for key, value in options.items()]
        place = [f"run_name={name}", "autoresume=true"]
        size = f"device_train_microbatch_size={microbatch}"
        words = ["train", str(spec or self.material.spec), *COMMON, size, *given, *place]
        self.command(words, processes)

    def steps(self, name: str, *, ranks: int) -> dict[int, tuple[list[int], float, float]]:
        """Return samples of all ranks (in the order of numbers), loss and norm by step."""
        found: dict[int, tuple[list[int], float, float]] = {}
        run = self.folder / "runs" / name
        for rank in range(ranks):
            for number, step in final_steps(read_ledger(run, rank)).items():
                assert step.samples is not None
                before = found.get(number, ([], step.loss, step.gradient_norm))
                assert before[1:] == (step.loss, step.gradient_norm), "ranks disagree"
                found[number] = (sorted([*before[0], *step.samples]), *before[1:])
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("layouts"))
    yield runs
    runs.commands.close()


@pytest.fixture(scope="module")
def pretraining(runs):
    """Fifty steps, four epochs and a bit, by one process in one forward a step."""
    runs.train("reference", processes=1, microbatch=16)
    return runs.steps("reference", ranks=1)


@pytest.fixture(scope="module")
def finetuning(runs):
    """Fifty steps; each third has three examples, and rows without any."""
    runs.train("finetuning", processes=1, microbatch=16, spec=runs.finetuning)
    return runs.steps("finetuning", ranks=1)


def assert_close(found, expected):
    assert list(found) == list(expected)
    for step, (samples, loss, norm) in expected.items():
        assert found[step][0] == samples, step
        assert found[step][1] == pytest.approx(loss, rel=CLOSE), step
        assert found[step][2] == pytest.approx(norm, rel=CLOSE), step


FULL, PARTLY = ({"fsdp_config": {"sharding_strategy": s}} for s in ("FULL_SHARD", "SHARD_GRAD_OP"))
LAYOUTS: list[tuple[int, int, dict[str, Any]]] = [
    *[(1, size, {}) for size in (1, 4, 3)],
    *[(2, size, {}) for size in (2, 3)],
    *[(4, size, {}) for size in (1, 2, 4, 3)],
    *[(2, 4, FULL), (4, 3, FULL), (4, 4, PARTLY)],
]


def name_of(layout):
    processes, microbatch, options = layout
    return "-".join(
        [f"{processes}x{microbatch}", *(v["sharding_strategy"] for v in options.values())]
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_fifty_steps_are_the_same_in_every_layout(runs, pretraining, layout):
    processes, microbatch, options = layout
    name = name_of(layout)
    runs.train(name, processes=processes, microbatch=microbatch, **options)
    assert len(pretraining) == 50
    assert_close(runs.steps(name, ranks=processes), pretraining)


@pytest.mark.parametrize("layout", [(2, 3, {}), (4, 1, {}), (4, 4, FULL)], ids=name_of)
def test_finetuning_is_the_same_where_ranks_have_no_targets(runs, finetuning, layout):
    processes, microbatch, options = layout
    name = f"finetuning-{name_of(layout)}"
    runs.train(name, processes=processes, microbatch=microbatch, spec=runs.finetuning, **options)
    assert len(finetuning) == 50
    assert_close(runs.steps(name, ranks=processes), finetuning)
    last = read_ledger(runs.folder / "runs" / name, processes - 1)[0].steps[2]
    if processes == 4:
        assert set(last.samples) == {-1}  # rows without an example, and so without a target
    else:
        assert -1 in last.samples


@pytest.mark.parametrize("path", [(4, 1, 2, 4), (1, 4, 2)], ids=str)
def test_a_run_goes_on_with_other_numbers_of_processes(runs, pretraining, path):
    """In the middle of epochs, sharded or not, with another microbatch each time."""
    name = f"elastic-{'-'.join(map(str, path))}"
    ends = [7 + 6 * number for number in range(len(path))]
    found = {}
    for processes, end in zip(path, ends, strict=True):
        options = FULL if processes == 4 else {}
        options = {**options, "max_duration": f"{end}ba", "optimizer.lr": 0.001}
        runs.train(name, processes=processes, microbatch=end % 4 + 1, **options)
        found |= {
            s: v for s, v in runs.steps(name, ranks=processes).items() if len(found) < s <= end
        }
    assert_close(found, {step: pretraining[step] for step in range(1, ends[-1] + 1)})


def test_one_layout_gives_the_same_bits_from_run_to_run(runs):
    for name in ("once", "twice"):
        runs.train(name, processes=4, microbatch=3, max_duration="12ba", **FULL)
    assert runs.steps("once", ranks=4) == runs.steps("twice", ranks=4)
