"""Runs that are ended from outside, and standard streams that are closed or full."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lare2_rt.host.console import Terminated, answer_sigterm, uninterrupted
from tests.helpers.commands import ENDING, FORMATS, listing, records, sentences


class TestInterrupted:
    @pytest.fixture(params=ENDING)
    def number(self, request):
        return request.param

    @pytest.fixture
    def scoring(self, small, tmp_path):
        """Start the command on many images in a process of its own, with buffers as users have them."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        started = []

        def start(*arguments):
            command = [sys.executable, "-m", "lare2_rt", "infer", *map(str, small * 100), *arguments]
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **options))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_standard_output_holds_complete_lines(self, scoring, number):
        process = scoring("--format", "jsonl")
        first = process.stdout.readline()
        process.send_signal(number)
        rest, err = process.communicate(timeout=30)
        word, code = ENDING[number]
        assert process.returncode == code
        found = [json.loads(line) for line in (first + rest).splitlines()]
        assert (first + rest).endswith("\n")
        assert 1 <= len(found) < 600
        assert sentences(err) == [f"{word} after {len(found)} of 600 images"]

    def test_a_results_file_gets_a_name_that_says_so(self, scoring, number, tmp_path):
        process = scoring("--out", "r.jsonl")
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.02)
        assert not (tmp_path / "r.jsonl").exists()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        word, code = ENDING[number]
        assert (process.returncode, out) == (code, "")
        assert listing(tmp_path) == ["r.jsonl.partial"]
        found = records(tmp_path / "r.jsonl.partial")
        assert 1 <= len(found) < 600
        sentence = f"{word} after {len(found)} of 600 images; the results so far are in r.jsonl.partial"
        assert sentences(err) == [sentence]

    @pytest.mark.parametrize("form", FORMATS)
    def test_partial_documents_are_complete(self, command, fake, small, form, number):
        fake.script = lambda call, output: signal.raise_signal(number) if call == 4 else None
        Path(f"r.{form}").write_text("precious")
        code, out, err = command("infer", *small, "--out", f"r.{form}", "--force")
        word, expected = ENDING[number]
        assert (code, out) == (expected, "")
        assert sentences(err) == [f"{word} after 3 of 6 images; the results so far are in r.{form}.partial"]
        assert len(records(Path(f"r.{form}.partial"))) == 3
        assert Path(f"r.{form}").read_text() == "precious"
        assert listing(Path()) == [f"r.{form}", f"r.{form}.partial"]

    def test_the_results_of_an_earlier_interruption_stay(self, command, fake, small):
        """Each run takes the next number; --force replaces, but no folder."""

        def interrupted(*arguments):
            fake.calls, fake.script = 0, lambda call, output: signal.raise_signal(signal.SIGINT) if call == 4 else None
            code, _, err = command("infer", *small, "--out", "r.json", *arguments)
            assert code == 130
            return sentences(err)[0].rsplit(" ", 1)[1]

        Path("r.json.partial").write_text("precious")
        assert interrupted() == "r.json.partial.1"
        assert interrupted() == "r.json.partial.2"
        assert Path("r.json.partial").read_text() == "precious"
        assert interrupted("--force") == "r.json.partial"
        assert len(records(Path("r.json.partial"))) == 3
        Path("r.json.partial").unlink()
        Path("r.json.partial").mkdir()
        assert interrupted("--force") == "r.json.partial.3"
        assert listing(Path()) == ["r.json.partial", *(f"r.json.partial.{n}" for n in (1, 2, 3))]

    @pytest.mark.parametrize("cut_short", [True, False])
    def test_a_second_time_while_the_results_are_put_away(self, command, fake, small, monkeypatch, number, cut_short):
        """Whatever is scored is kept, be it all or a part."""
        original = os.fsync

        def fsync(handle):
            for again in ENDING:
                signal.raise_signal(again)
            original(handle)

        if cut_short:
            fake.script = lambda call, output: signal.raise_signal(number) if call == 4 else None
        monkeypatch.setattr(os, "fsync", fsync)
        assert command("infer", *small, "--out", "r.json")[0] == (ENDING[number][1] if cut_short else 0)
        assert len(records(Path("r.json.partial" if cut_short else "r.json"))) == (3 if cut_short else 6)
        assert len(listing(Path())) == 1

    @pytest.mark.parametrize("where", ["lare2_rt.host.command_line.output_errors", "lare2_rt.detector.Detector.load"])
    def test_while_loading(self, command, small, monkeypatch, number, where):
        """Also before our own code has begun, where typer would say 'Aborted' and exit with 1."""

        def strike(*arguments, **options):
            signal.raise_signal(number)

        monkeypatch.setattr(where, strike)
        code, out, err = command("infer", *small, "--out", "r.json")
        assert (code, out) == (ENDING[number][1], "")
        assert sentences(err) == [ENDING[number][0]]
        assert listing(Path()) == []

    def test_a_record_is_never_cut(self, number):
        done = []

        def write():
            with uninterrupted():
                signal.raise_signal(number)
                done.append(1)

        before = {each: signal.getsignal(each) for each in ENDING}
        try:
            answer_sigterm()
            ours = {each: signal.getsignal(each) for each in ENDING}
            with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
                write()
            assert done == [1]
            assert ours == {each: signal.getsignal(each) for each in ENDING}
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def test_a_process_that_ignores_a_signal_goes_on_ignoring_it(self, number):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            answer_sigterm()
            with uninterrupted():
                signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


class TestStandardStreams:
    """A real shell, since closed descriptors and pipes are its doing."""

    @pytest.fixture
    def shell(self, tmp_path):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

        def shell(line, then=""):
            """Run a line of shell in which $run is the command; returns the line's exit code and the process."""
            line = line.replace("$run", f"{shlex.quote(sys.executable)} -m lare2_rt")
            line = f"{{ {line}; echo $? > code; }} {then}"
            options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 60}
            run = subprocess.run(["sh", "-c", line], check=False, **options)
            return int((tmp_path / "code").read_text()), run

        return shell

    @pytest.mark.parametrize("form", ["jsonl", "csv"])
    def test_a_reader_that_leaves(self, shell, small, form):
        """No complaint, and exit code 1, for the other images have no result."""
        images = shlex.join(map(str, small * 100))
        code, run = shell(f"$run infer {images} --format {form}", "| head -1")
        assert code == 1
        assert sentences(run.stderr) == []
        assert run.stdout.count("\n") == 1
        assert form == "csv" or json.loads(run.stdout)["source"] == str(small[0])

    @pytest.mark.parametrize("arguments", ["--help", "inspect --format json"])
    def test_a_reader_that_is_not_there(self, shell, arguments):
        code, run = shell(f"sleep 0.1; $run {arguments}", "| true")
        assert code == 1
        assert run.stderr == ""

    def test_closed_standard_output(self, shell, small):
        code, run = shell(f"$run infer {small[0]} >&-")
        assert code == 2
        assert sentences(run.stderr) == ["standard output is closed; send it to a file or to /dev/null"]

    @pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
    def test_standard_error_that_takes_nothing(self, shell, small, where):
        code, run = shell(f"$run infer {small[0]} missing.png --format jsonl {where}")
        assert code == 1
        assert [bool(json.loads(line)["error"]) for line in run.stdout.splitlines()] == [False, True]
