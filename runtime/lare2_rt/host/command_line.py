"""Commands from dataclasses: an option is a field, declared once, and reaches its place as that field.

A field is ``Annotated[type, typer.Option(...)]`` or ``typer.Argument(...)`` with its default. A field whose type is a
dataclass of its own brings in all of that one's fields, so that commands share groups of options.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer

from .console import Interrupted, output_errors

Options = TypeVar("Options")


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
    hints = typing.get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _flat(typing.cast("type[Any]", kind))
        else:
            yield field.name, kind, _default(field)


def _default(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _filled(options: type[Options], values: dict[str, Any]) -> Options:
    hints = typing.get_type_hints(options, include_extras=True)
    content: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        kind = hints[field.name]
        group = dataclasses.is_dataclass(kind)
        content[field.name] = _filled(typing.cast("type[Any]", kind), values) if group else values[field.name]
    return options(**content)
