import random
import threading

import pytest

from foundry_sdk.checkpoint.objects import PassingError, is_uri, shown
from foundry_sdk.checkpoint.patience import VARIABLE, Patience
from foundry_sdk.errors import CheckpointError, RemoteStoreError

QUICK = Patience(deadline=20, attempts=4, first=0.001)


class Flaky:
    def __init__(self, failures, error=PassingError):
        self.left, self.calls, self.error = failures, 0, error

    def __call__(self):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error("the server is busy")
        return self.calls


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_what_passes_is_tried_again(failures):
    assert QUICK("listing", Flaky(failures)) == failures + 1


def test_attempts_end_and_the_last_reason_is_told():
    flaky = Flaky(100)
    with pytest.raises(RemoteStoreError, match=r"the server is busy \(given up after 4 attempt"):
        QUICK("listing", flaky)
    assert flaky.calls == 4


@pytest.mark.parametrize("error", [RemoteStoreError, CheckpointError])
def test_what_does_not_pass_is_not_tried_again(error):
    flaky = Flaky(100, error)
    with pytest.raises(error, match="busy"):
        QUICK("listing", flaky)
    assert flaky.calls == 1


def test_waits_double_and_are_never_less_than_half():
    waits = []
    patience = Patience(attempts=8, first=1.0, longest=8.0)
    object.__setattr__(patience, "_given_up", _Recorder(waits))
    with pytest.raises(RemoteStoreError):
        patience("listing", Flaky(100))
    assert len(waits) == 7
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8, 8), strict=True):
        assert longest / 2 <= wait <= longest


class _Recorder:
    def __init__(self, waits):
        self.waits = waits

    def wait(self, seconds):
        self.waits.append(seconds)
        return False

    def is_set(self):
        return False


def test_a_call_that_never_returns_ends_at_the_deadline():
    never = threading.Event()
    with pytest.raises(RemoteStoreError, match=rf"storing x: no answer within 0.3 s.*{VARIABLE}"):
        Patience(deadline=0.3)("storing x", never.wait)
    never.set()


def test_giving_up_ends_a_call_in_another_thread():
    never, patience, said = threading.Event(), Patience(), []

    def work():
        with pytest.raises(RemoteStoreError, match="broken off") as caught:
            patience("storing", never.wait)
        said.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    patience.give_up()
    thread.join(30)
    never.set()
    assert said


def test_the_run_s_random_state_is_left_alone():
    random.seed(3)
    before = random.getstate()
    QUICK("listing", Flaky(3))
    assert random.getstate() == before


def test_the_deadline_comes_from_the_environment(monkeypatch):
    assert Patience.from_environment().deadline == 600
    monkeypatch.setenv(VARIABLE, "2.5")
    assert Patience.from_environment().deadline == 2.5
    assert Patience.from_environment().answer == 2.5
    for wrong in ("0", "-1", "soon", "nan", "inf"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(CheckpointError, match=VARIABLE):
            Patience.from_environment()


def test_secrets_of_addresses_are_not_shown():
    text = "cannot list ftp://me:pw@host/a?sig=abc and s3://bucket/b: why?"
    assert shown(text) == "cannot list ftp://host/a and s3://bucket/b: why?"
    assert is_uri("s3://a/b")
    assert not is_uri("/a/b")
