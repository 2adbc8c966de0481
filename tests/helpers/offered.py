"""What the commands of the project offer: every option with its default and choices."""

import contextlib
import inspect
import runpy
import sys
import types
import typing
from pathlib import Path

import typer

from lare2_rt.cli import main
from tests.conftest import ROOT

ENTRIES = {
    "lare2-rt": main,
    "export/build_engines.py": lambda: runpy.run_path(str(ROOT / "export/build_engines.py"), run_name="__main__"),
    "lare2_ref.train": lambda: runpy.run_module("lare2_ref.train", run_name="__main__"),
    "lare2_ref.evaluate": lambda: runpy.run_module("lare2_ref.evaluate", run_name="__main__", alter_sys=True),
}


def offered(entry, monkeypatch):
    """Every command of an entry point with the facts of its parameters."""
    apps, found = [], {}
    monkeypatch.setattr(typer.Typer, "__call__", lambda self, *args, **kwargs: apps.append(self))
    monkeypatch.setattr(sys, "argv", [entry, "--help"])
    with contextlib.suppress(SystemExit):
        ENTRIES[entry]()

    def walk(command, name):
        for part, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {part}")
        if not hasattr(command, "commands"):
            hints = typing.get_type_hints(inspect.unwrap(command.callback))
            found[name] = {max(param.opts, key=len): facts_of(param, hints[param.name]) for param in command.params}

    walk(typer.main.get_command(apps[-1]), entry)
    return found


def facts_of(param, hint):
    bounds = param if hasattr(param, "min") else param.type
    default = str(param.default) if isinstance(param.default, Path) else param.default
    return {
        "kind": param.param_type_name,
        "names": sorted([*param.opts, *param.secondary_opts]) if param.param_type_name == "option" else [],
        "default": None if default in ((), [], "") else default,
        "required": param.required,
        "several": bool(param.multiple or param.nargs == -1),
        "type": type_of(hint),
        "range": [getattr(bounds, "min", None), getattr(bounds, "max", None)],
    }


def type_of(hint):
    """A name, or the choices, however the annotation is written."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return parts
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list):
        return type_of(parts[0])
    return "str" if hint is Path else hint.__name__
