"""A process that is told what to do, seen from both sides."""

import sys
import time
from pathlib import Path

import pytest

from lare2_rt import BundleError, EngineError, UsageError
from lare2_rt.host.resident import Answers, Resident

ROOT = Path(__file__).parents[2]


def main(*first):
    """The child: does what its orders say."""
    answers = Answers(logged=True)
    print(*first)
    sys.stdout.flush()
    with answers.errors():
        for verb, *arguments in answers.orders():
            if verb == "echo":
                answers.tell(notice="a moment")
                answers.tell(echo=arguments)
            elif verb == "refuse":
                raise BundleError("no", remedy="ask again")
            elif verb == "sleep":
                time.sleep(60)
            else:
                sys.exit("what?")


@pytest.fixture
def resident(tmp_path):
    resident = Resident(
        __name__,
        "hello",
        refused=UsageError,
        died=EngineError,
        name="it",
        env={"PYTHONPATH": str(ROOT)},
        log=tmp_path / "log",
    )
    yield resident
    resident.close()


def test_answers_and_notices(resident, tmp_path):
    notices = []
    assert resident.ask("echo", 1, "ä\n") == {"echo": [1, "ä\n"]}
    resident.child.stdin.write('["echo"]\n')
    resident.child.stdin.flush()
    assert resident.answer(notices.append) == {"echo": []}
    assert notices == ["a moment"]
    assert (tmp_path / "log").read_text() == "hello\n"


def test_refusal_keeps_its_remedy(resident):
    with pytest.raises(UsageError) as caught:
        resident.ask("refuse")
    assert (caught.value.problem, caught.value.remedy) == ("no", "ask again")


def test_end_is_told(resident):
    with pytest.raises(EngineError) as caught:
        resident.ask("nonsense")
    assert caught.value.problem == "it was ended with code 1: what?"
    assert caught.value.remedy == "report it"


def test_late_answer(resident):
    begin = time.monotonic()
    with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
        resident.ask("sleep", limit=0.2)
    assert time.monotonic() - begin < 20


def test_close_ends_what_is_running(resident):
    resident.child.stdin.write('["sleep"]\n')
    resident.child.stdin.flush()
    resident.close()
    assert resident.child.process.returncode is not None


def test_no_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(EngineError) as caught:
        Resident(__name__, refused=UsageError, died=EngineError)
    assert caught.value.remedy == "close other programs"
