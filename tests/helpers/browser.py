"""A real headless browser for tests of pages: Chromium through QtWebEngine, in a process of its own.

Usage: python browser.py PAGE WIDTH HEIGHT < steps.json. Each step is JavaScript whose value is wanted, or one of
{"key": name}, {"wait": milliseconds}, {"shot": file}. Prints one JSON object: the values, and what the console said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "PySide6.QtWebEngineWidgets"


def interpreter() -> str:
    """The Python that has the browser: it may be another one, as a browser is large."""
    return os.environ.get("LARE2_BROWSER_PYTHON", sys.executable)


def missing() -> str | None:
    """Why there is no browser here; None where there is one."""
    if sys.platform != "linux":
        return "the browser is only driven on Linux"
    try:
        found = subprocess.run([interpreter(), "-c", f"import {MODULE}"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        return f"{interpreter()} does not run: {error}"
    if found.returncode == 0:
        return None
    last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"no browser: pip install '.[browser]', or name a Python that has it in LARE2_BROWSER_PYTHON ({last})"


def browse(page: Path, steps, *, width: int = 1280, height: int = 900, dark: bool = False) -> dict:
    """Load a page, take the steps, and return {"values": [...], "console": [...]}."""
    with tempfile.TemporaryDirectory() as home:
        flags = ["--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion"]  # the page is ours
        if dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        env = {
            **os.environ,
            "HOME": home,
            "XDG_RUNTIME_DIR": home,
            "QT_QPA_PLATFORM": "offscreen",
            "QTWEBENGINE_CHROMIUM_FLAGS": " ".join(flags),
        }
        command = [interpreter(), __file__, str(page), str(width), str(height)]
        run = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, env=env, timeout=110)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    from PySide6.QtCore import QEventLoop, Qt, QTimer, QUrl
    from PySide6.QtTest import QTest
    from PySide6.QtWebEngineCore import QWebEnginePage
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    page, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    steps = json.load(sys.stdin)
    application = QApplication([sys.argv[0]])
    console: list[str] = []

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
            console.append(message)

    view = QWebEngineView()
    view.setPage(Page(view))
    view.resize(width, height)
    view.show()

    def wait(milliseconds):
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()

    def value(script):
        loop, answer = QEventLoop(), []

        def done(result):
            answer.append(result)
            loop.quit()

        view.page().runJavaScript(f"JSON.stringify((() => ({script}))())", done)
        if not answer:
            loop.exec()
        return json.loads(answer[0]) if answer[0] else None

    loop = QEventLoop()
    loaded = []
    view.loadFinished.connect(lambda fine: (loaded.append(fine), loop.quit()))
    view.load(QUrl.fromLocalFile(str(Path(page).resolve())))
    loop.exec()
    assert loaded == [True], "the page did not load"
    view.setFocus()
    wait(100)
    values = []
    for step in steps:
        if isinstance(step, str):
            values.append(value(step))
        elif "key" in step:
            target = view.focusProxy() or view
            QTest.keyClick(target, getattr(Qt.Key, f"Key_{step['key']}"), Qt.KeyboardModifier(step.get("with", 0)))
            wait(80)
        elif "wait" in step:
            wait(step["wait"])
        else:
            wait(400)
            view.grab().save(step["shot"])
    print(json.dumps({"values": values, "console": console}))
    sys.stdout.flush()
    assert application is QApplication.instance()
    os._exit(0)  # Chromium's processes end with this one; its orderly end takes seconds


if __name__ == "__main__":
    main()
