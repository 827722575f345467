import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from foundry_sdk.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_a_request(number):
    with StopRequest() as stop:
        assert stop.reason is None
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.number == number
        assert stop.reason == f"signal {number.name}"


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_in_another_thread_signals_keep_their_meaning():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGTERM), False)]


SCRIPT = """
import os, sys, time
from foundry_sdk.training.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print(stop.reason, flush=True)
    time.sleep(60)
"""


def start(script):
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number):
    process = start(SCRIPT)
    process.send_signal(number)
    assert process.stdout.readline() == f"signal {number.name}\n"
    time.sleep(1.1)
    process.send_signal(number)
    assert process.wait(20) == -number


def test_two_signals_at_once_are_one_request():
    process = start(SCRIPT.replace("time.sleep(60)", "time.sleep(1)"))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() in {"signal SIGTERM\n", "signal SIGINT\n"}
    assert process.wait(20) == 0


def test_a_forked_worker_ends_when_told_to_and_not_at_ctrl_c():
    process = start(
        """
import os, signal, sys, time
from foundry_sdk.training.signals import StopRequest
with StopRequest() as stop:
    child = os.fork()
    if child == 0:
        print("ready", flush=True)
        time.sleep(60)
    time.sleep(0.5)
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGTERM)
"""
    )
    assert process.wait(20) == 0
