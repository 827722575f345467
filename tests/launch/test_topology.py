import socket

import pytest

from foundry_sdk.errors import LaunchError
from foundry_sdk.launch.topology import LaunchOptions, resolve_topology, started_as_worker


def resolve(environ=None, *, devices=0, **options):
    return resolve_topology(LaunchOptions(**options), environ or {}, devices=devices)


def test_one_process_on_a_cpu_and_one_per_gpu():
    assert resolve().world_size == 1
    alone = resolve(devices=8)
    assert (alone.nproc, alone.world_size, alone.base_rank, alone.node_rank) == (8, 8, 0, 0)
    assert alone.master_addr == "127.0.0.1"
    assert list(alone.ranks()) == list(range(8))


def test_the_free_port_can_be_listened_to():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", resolve(nproc=2).master_port))


def test_a_worker_gets_what_torchrun_would_give_it():
    topology = resolve(nproc=2, world_size=6, node_rank=1, master_addr="10.0.0.1", master_port=2950)
    assert topology.environment(1) == {
        "RANK": "3",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "2950",
    }
    assert topology.nodes == 3


def test_the_environment_fills_in_and_the_command_line_wins():
    environ = {
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "4",
        "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "2950",
    }
    given = resolve(environ)
    assert (given.nproc, given.world_size, given.base_rank) == (2, 4, 2)
    assert (given.master_addr, given.master_port) == ("10.0.0.1", 2950)
    changed = resolve(
        environ, nproc=1, world_size=3, node_rank=2, master_addr="10.0.0.9", master_port=99
    )
    assert (changed.nproc, changed.world_size, changed.base_rank) == (1, 3, 2)
    assert (changed.master_addr, changed.master_port) == ("10.0.0.9", 99)


def test_base_rank_and_node_rank_follow_from_each_other():
    place = {"master_addr": "10.0.0.1", "master_port": 2950}
    assert resolve(nproc=4, world_size=12, base_rank=8, **place).node_rank == 2
    assert resolve(nproc=4, world_size=12, node_rank=2, **place).base_rank == 8


def test_machines_of_different_sizes_say_both():
    place = {"master_addr": "10.0.0.1", "master_port": 2950}
    topology = resolve(nproc=2, world_size=5, base_rank=3, node_rank=1, **place)
    assert list(topology.ranks()) == [3, 4]
    with pytest.raises(LaunchError, match="set both --node-rank and --base-rank"):
        resolve(nproc=2, world_size=5, node_rank=1, **place)


@pytest.mark.parametrize(
    ("options", "environ", "text"),
    [
        ({"nproc": 0}, {}, "--nproc=0: expected at least 1"),
        ({"nproc": 4, "world_size": 2}, {}, "--world-size 2 is less than --nproc 4"),
        ({"world_size": 4}, {}, "--node-rank"),
        ({"world_size": 4, "node_rank": 1}, {}, "need --master-addr and --master-port"),
        (
            {"world_size": 4, "node_rank": 1, "master_addr": "a"},
            {},
            "need --master-port",
        ),
        (
            {"nproc": 2, "world_size": 4, "node_rank": 2, "master_addr": "a", "master_port": 9},
            {},
            "ranks 4 to 5 of this machine are not below --world-size 4",
        ),
        ({"nproc": 2, "base_rank": 1}, {}, "--base-rank 1: with all 2 process"),
        ({"node_rank": 1}, {}, "--node-rank 1: with all 1 process"),
        ({"node_rank": -1}, {}, "--node-rank=-1: expected at least 0"),
        ({"master_port": 70000}, {}, "expected a port"),
        ({}, {"WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number"),
        ({}, {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(options, environ, text):
    with pytest.raises(LaunchError) as caught:
        resolve(environ, **options)
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(LaunchError, match=r"this machine has 2 GPU"):
        resolve(nproc=4, devices=2)


def test_a_port_in_use_is_found_before_anything_starts():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"--master-port {port}: Address already in use"):
            resolve(nproc=2, master_port=port)


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None),
        ({"RANK": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, "torchrun"),
        ({"RANK": "1", "LOCAL_RANK": "0"}, "another launcher"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch"),
    ],
)
def test_who_started_a_process_is_read_from_its_environment(environ, launcher):
    assert started_as_worker(environ) == launcher


def test_the_one_process_that_accelerate_makes_of_several_is_refused():
    with pytest.raises(LaunchError, match="has started one process"):
        started_as_worker(
            {
                "ACCELERATE_USE_CPU": "True",
                "ACCELERATE_MIXED_PRECISION": "no",
                "MASTER_ADDR": "127.0.0.1",
            }
        )
