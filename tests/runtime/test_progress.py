"""The progress bar: on standard error, where that is a terminal, and nowhere else."""

import json
import os
import pty
import re
import threading

import pytest

from tests.helpers.commands import call

BAR = "scoring"


class Terminal:
    """A pseudo-terminal whose screen, all that was ever written to it, can be read afterwards."""

    def __init__(self):
        self._ours, self.theirs = pty.openpty()
        self._content = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        try:
            while chunk := os.read(self._ours, 4096):
                self._content += chunk
        except OSError:  # what Linux says when the last writer has left
            pass

    def close(self):
        """Return the text; nothing may write any more."""
        os.close(self.theirs)
        self._reader.join(timeout=10)
        os.close(self._ours)
        return self._content.decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    """Run the command on some photographs and a missing file with standard error, or both outputs, on a terminal."""
    folder = tmp_path_factory.mktemp("terminal")
    environment = {"TERM": "xterm-256color", "COLUMNS": "120", "LARE2_CACHE": str(folder / "cache")}

    def run(*arguments, output_too=False, images=(*photos, "missing.jpg")):
        terminal = Terminal()
        with pytest.MonkeyPatch.context() as patch, os.fdopen(os.dup(terminal.theirs), "w", encoding="utf-8") as screen:
            for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LARE2_BUNDLE"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            stdout = screen if output_too else None
            done = call("infer", *images, *arguments, folder=folder, stdout=stdout, stderr=screen)
        return done.returncode, done.stdout, terminal.close()

    return run


@pytest.fixture(scope="module")
def records(run):
    """Exit code, standard output and screen of a run that gives records."""
    return run("--format", "jsonl", "--verify")


def visible(screen):
    """What a terminal shows in the end: lines that were erased or written over are gone."""
    shown = [""]
    row = 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r\n|\r|\n|[^\x1b\r\n]+", screen):
        if part in ("\n", "\r\n"):
            row += 1
            shown += [""] * (row + 1 - len(shown))
        elif part == "\x1b[2K":
            shown[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1] or 1)
        elif part[0] not in "\x1b\r":
            shown[row] += part
    return "\n".join(shown)


def test_bar_on_standard_error_and_results_on_standard_output(records, photos):
    code, out, screen = records
    assert code == 1
    sources = [json.loads(line)["source"] for line in out.splitlines()]
    assert sources == [*map(str, photos), "missing.jpg"]
    assert "\x1b" not in out
    assert BAR in screen
    counts = re.findall(rf"{BAR}.*?(\d+)/{len(sources)}", screen)
    assert counts[0] == "0"
    assert counts[-1] == str(len(sources))
    assert counts == sorted(counts, key=int)


def test_bar_is_gone_when_the_run_ends(records):
    """What stays are our sentences, each on a line of its own."""
    _, _, screen = records
    lines = [line for line in visible(screen).splitlines() if line.strip()]
    assert all(line.startswith("lare2-rt: ") for line in lines), lines
    assert sum(line.startswith("lare2-rt: missing.jpg: ") for line in lines) == 1
    assert BAR not in visible(screen)
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") >= 1  # the cursor is back


def test_results_in_a_file(run, tmp_path):
    code, out, screen = run("--out", tmp_path / "r.txt")
    assert (code, out) == (1, "")
    assert BAR in screen
    text = (tmp_path / "r.txt").read_text()
    assert "missing.jpg" in text
    assert "\x1b" not in text


def test_table_on_the_same_terminal(run):
    """The bar is erased before the table is drawn."""
    code, _, screen = run(output_too=True)
    assert code == 1
    shown = visible(screen)
    assert BAR in screen
    assert BAR not in shown
    assert len(re.findall(r"\b(real|unsure|generated)\b", shown)) >= 3
    assert shown.count("failed") == 2  # in the table, and in the line that sums up


def test_one_image_needs_no_bar(run, photos):
    code, out, screen = run("--format", "jsonl", images=photos[:1])
    assert code == 0
    assert BAR not in screen
    assert json.loads(out)["source"] == str(photos[0])


def test_no_terminal_no_bar(command, photos, monkeypatch):
    """Whatever the environment says about terminals."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    code, out, err = command("infer", *photos, "--format", "jsonl", "--verify")
    assert code == 0
    assert all(line.startswith("lare2-rt: ") for line in err.splitlines())
    assert "\x1b" not in err + out


def test_the_check_of_a_bundle_is_shown_too(records):
    _, _, screen = records
    assert "checking the bundle" in screen
    assert "checking the bundle" not in visible(screen)
