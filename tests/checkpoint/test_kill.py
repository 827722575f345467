"""A process killed at every moment of a save: there is always a whole checkpoint."""

import os
import signal

import pytest
import torch

from foundry_sdk.checkpoint.ranks import SoloRanks
from foundry_sdk.checkpoint.store import CheckpointStore
from foundry_sdk.faultpoints import VARIABLE

TENSORS = {"model.w": torch.arange(12.0).reshape(3, 4), "model.b": torch.ones(3)}


def save(store, step):
    store.save(step, {n: t + step for n, t in TENSORS.items()}, {"step": step}, {"rng": step})


def assert_newest_is_whole(folder, allowed):
    store = CheckpointStore(folder, SoloRanks())
    newest = store.newest()
    assert newest is not None
    assert store.skipped == ()
    assert newest.step in allowed
    into = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    scalars, _ = store.load(newest, into)
    assert scalars == {"step": newest.step}
    for name, tensor in TENSORS.items():
        assert torch.equal(into[name], tensor + newest.step)
    return newest.step


def test_killed_at_any_moment_of_a_save_or_prune(folder, forked):
    first = CheckpointStore(folder, SoloRanks(), keep=2)
    for step in (1, 2):
        save(first, step)
    first.close()
    step, kills, advanced = 3, 0, set()
    for nth in range(1, 200):

        def work(step=step, nth=nth):
            os.environ[VARIABLE] = f"checkpoint.*:{nth}:kill"
            save(CheckpointStore(folder, SoloRanks(), keep=2), step)

        code = forked(work)
        assert code in {0, -signal.SIGKILL}
        advanced.add(assert_newest_is_whole(folder, {step - 1, step}) == step)
        if code == 0:
            break
        kills += 1
        # Like a restarted run: the same step again, in what the killed one left.
        again = CheckpointStore(folder, SoloRanks(), keep=2)
        save(again, step)
        assert again.steps() == (step, step - 1)
        assert sorted(os.listdir(folder)) == [".lock", *(f"step-{n:06d}" for n in (step - 1, step))]
        again.close()
        step += 1
    assert code == 0, "the loop ended before a save went through"
    assert kills > 15
    assert advanced == {False, True}, "kills before and after the commit"


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_a_rank_killed_at_any_moment_of_a_save(folder, ranks, victims):
    def first(peers):
        store = CheckpointStore(folder, peers, keep=2)
        for step in (1, 2):
            save(store, step)

    assert ranks(2, first) == [0, 0]
    step, fired = 3, 0
    for nth in range(1, 200):

        def work(peers, step=step, nth=nth):
            if peers.rank in victims:
                os.environ[VARIABLE] = f"checkpoint.*:{nth}:kill"
            save(CheckpointStore(folder, peers, keep=2), step)

        codes = ranks(2, work)
        assert_newest_is_whole(folder, {step - 1, step})
        if codes == [0, 0]:
            break
        fired += 1
        assert ranks(2, lambda peers, step=step: save(CheckpointStore(folder, peers), step)) == [
            0,
            0,
        ]
        assert_newest_is_whole(folder, {step})
        step += 1
    assert codes == [0, 0]
    assert fired >= 4


def test_a_rank_that_cannot_write_fails_the_save_on_all_and_the_next_one_works(folder, ranks):
    def work(peers):
        store = CheckpointStore(folder, peers, keep=2)
        save(store, 1)
        for nth in (1, 2, 3, 4):
            if peers.rank == 1:
                os.environ[VARIABLE] = f"checkpoint.*:{nth}:enospc"
            with pytest.raises(Exception, match="no space left"):
                save(store, 2)
            os.environ.pop(VARIABLE, None)
            assert peers.gather(sorted(os.listdir(folder))) == [[".lock", "step-000001"]] * 2
        save(store, 2)
        assert store.newest().step == 2

    assert ranks(2, work) == [0, 0]
