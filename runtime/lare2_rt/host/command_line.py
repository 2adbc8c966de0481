"""Commands from dataclasses: an option is a field, declared once, and reaches its place as that field.

A field is ``Annotated[type, typer.Option(...)]`` or ``typer.Argument(...)`` with its default. A field whose type is a
dataclass of its own brings in all of that one's options, so that commands share groups of them. Any other field is no
option and keeps its default. Names of options are unique in a command. ``typer`` need not be in a module's namespace at
run time: ``if TYPE_CHECKING: import typer`` leaves it to programs that make a command.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

import typer

from ..errors import Lare2Error
from .console import EXIT_FILES, EXIT_USAGE, Interrupted, ReaderGone, answering_sigterm, output_errors, silence
from .text import printable

Options = TypeVar("Options")


def one_command(name: str, options: type[Options], run: Callable[[Options], int | None]) -> typer.Typer:
    """Return a program that is one command; see ``add_command``."""
    help_names = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=help_names)
    add_command(app, name, options, run)
    return app


def entry_point(app: typer.Typer, name: str, *, hint: str = "") -> Callable[[], None]:
    """Return the ``main`` of a program: every known error is one sentence after ``name``, and an exit code.

    ``hint`` says after Ctrl-C and SIGTERM what is kept.
    """

    def main() -> None:
        try:
            app()
        except Lare2Error as error:
            leave(str(error), EXIT_USAGE)
        except Interrupted as ending:
            leave(f"{ending}; {hint}" if hint else str(ending), ending.code)
        except ReaderGone:
            silence(sys.stdout)
            sys.exit(EXIT_FILES)

    def leave(sentence: str, code: int) -> None:
        sys.stderr.write(f"{name}: {printable(sentence)}\n")
        sys.exit(code)

    return answering_sigterm(main)


def add_command(app: typer.Typer, name: str, options: type[Options], run: Callable[[Options], int | None]) -> None:
    """Let ``app`` call ``run`` with the options of a command; its docstring is the command's help.

    ``run`` returns the exit code, None for 0. Ctrl-C and SIGTERM leave it as ``Interrupted``: typer would exit with 1.
    """

    def command(**values: Any) -> None:  # noqa: ANN401 - as typer parsed them
        try:
            with output_errors():
                code = run(_filled(options, values))
        except KeyboardInterrupt as error:
            raise Interrupted(error) from None
        raise typer.Exit(code or 0)

    fields = list(_flat(options))
    keyword = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, keyword, default=default, annotation=kind) for name, kind, default in fields]
    )
    command.__annotations__ = {name: kind for name, kind, _ in fields}
    command.__doc__ = run.__doc__
    app.command(name)(command)


def _flat(options: type[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotation and default of every option, those of groups in the place of the group."""
    hints = _hints(options)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _flat(typing.cast("type[Any]", kind))
        elif _is_option(kind):
            yield field.name, kind, _default(field)


def _hints(options: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(options, localns={"typer": typer}, include_extras=True)


def _is_option(kind: object) -> bool:
    return typing.get_origin(kind) is Annotated


def _default(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _filled(options: type[Options], values: dict[str, Any]) -> Options:
    hints = _hints(options)
    content: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            content[field.name] = _filled(typing.cast("type[Any]", kind), values)
        elif _is_option(kind):
            content[field.name] = values[field.name]
    return options(**content)
