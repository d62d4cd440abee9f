"""Settings from a file, then from the command line: `--config small --max-steps 500`."""

import dataclasses
import json
import sys
import tomllib
import typing
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union

from midigpt.files import UserError, say

PRESETS = Path(__file__).parents[1] / "configs"
ALIKE = 0.6  # names at least so similar may be meant: difflib's own threshold
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    Path: "a path in quotes",
}

Config = TypeVar("Config")


def parse_config(kind: type[Config], description: str | None, default: Config | None = None) -> Config:
    """The command line as an instance of the frozen dataclass `kind`, whose fields all have defaults.

    `kind` has a field `config: str | None`: the name of a preset, configs/NAME.toml of the project, or a path that
    ends in .toml. What stands in that file takes the place of the defaults, and flags that of the file;
    `default` is used where no --config is given. Fields may be int, float, bool, str, Path, Literal,
    X | None, tuple[X, ...] and other frozen dataclasses. As with `parse_arguments`, from here on what the user can
    mend is printed as a sentence. Raises UserError for a file that is missing or wrong; flags that are wrong end
    the process, as tyro does.
    """
    import tyro

    sys.excepthook = say
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")  # without a value it is tyro's to answer
    name = parser.parse_known_args()[0].config
    if name not in (None, "None"):
        default = load_preset(kind, name)
    return tyro.cli(kind, description=description, default=default or kind())


def load_preset(kind: type[Config], name: str) -> Config:
    """The instance of `kind` that a preset or a path ending in .toml describes; `name` is kept in its `config`."""
    path, shown = Path(name), name
    if path.suffix != ".toml":
        names = sorted(file.stem for file in PRESETS.glob("*.toml"))
        if name not in names:
            raise UserError(
                f"--config {name}: there is no such preset; there are {', '.join(names)}, or give the path of"
                f" a .toml file{_did_you_mean(name, names)}"
            )
        path, shown = PRESETS / f"{name}.toml", f"configs/{name}.toml"
    try:
        table = tomllib.loads(text := path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {name}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{shown} is not UTF-8 text; save it as that") from None
    except tomllib.TOMLDecodeError as error:
        last = f"at line {len(text.splitlines())}, the last"
        reason = str(error).replace("at end of document", last)
        raise UserError(f"{shown} is not valid TOML: {reason}") from None
    if "config" in table:
        raise UserError(f"{shown}: config can't be set in a file; give --config on the command line")
    return dataclasses.replace(from_table(kind, table, shown), config=name)  # type: ignore[type-var]


def from_table(kind: type[Config], table: dict[str, Any], shown: str) -> Config:
    """The instance of `kind` that a table of TOML or JSON describes; `shown` names it in a UserError."""
    default = kind()
    return _fill(default, table, list(_names(default)), shown, "")


def as_table(config: Any) -> dict[str, Any]:
    """Undo from_table: what JSON can hold, without what is not set."""
    return {
        field.name: as_table(value)
        if dataclasses.is_dataclass(value)
        else str(value)
        if isinstance(value, Path)
        else value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) is not None
    }


def as_words(table: dict[str, Any]) -> str:
    """A table on one line, without what is not set."""
    return ", ".join(f"{name} {value}" for name, value in table.items() if value is not None)


def _fill(default: Any, table: dict[str, Any], names: list[str], shown: str, prefix: str) -> Any:
    """`default` with the values of a table; `names` are all settings there are, dotted."""
    hints = typing.get_type_hints(type(default))
    values: dict[str, Any] = {}
    for key, value in table.items():
        field = key.replace("-", "_")
        dotted = prefix + field
        if field not in hints:
            raise UserError(f"{shown}: {prefix}{key} is no setting{_did_you_mean(field, names) or '; see --help'}")
        if field in values:
            raise UserError(f"{shown}: {dotted} is set twice")
        if dataclasses.is_dataclass(old := getattr(default, field)):
            if not isinstance(value, dict):
                raise UserError(f"{shown}: {dotted} is {_show(value)}, but must be a table: [{dotted}]")
            values[field] = _fill(old, value, names, shown, f"{dotted}.")
            continue
        try:
            values[field] = _read(value, hints[field])
        except TypeError:
            raise UserError(f"{shown}: {dotted} is {_show(value)}, but must be {_words(hints[field])}") from None
    return dataclasses.replace(default, **values)


def _names(default: Any, prefix: str = "") -> Iterator[str]:
    """All settings, dotted."""
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        yield prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _names(value, f"{prefix}{field.name}.")


def _read(value: Any, hint: Any) -> Any:
    """A value of TOML as the type of its field; TypeError where it is of another."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(TypeError):
                return _read(value, part)
    elif origin is tuple and isinstance(value, list):
        return tuple(_read(item, parts[0]) for item in value)
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is Path and type(value) is str:
        return Path(value)
    elif type(value) is hint or (origin is Literal and value in parts):
        return value
    raise TypeError


def _words(hint: Any) -> str:
    """What a value must be, for a sentence."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in parts if part is not type(None))
    if origin is Literal:
        return " or ".join(map(_show, parts))
    if origin is tuple:
        return f"a list in brackets, each {_words(parts[0])}"
    return WORDS[hint]


def _show(value: Any) -> str:
    """A value as it stands in the file, or nearly so."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _did_you_mean(name: str, names: list[str]) -> str:
    """The nearest of the names, as the end of a sentence; empty where none is near.

    Of dotted names only the last part is compared: who writes n_layers means model.n_layer.
    """

    def likeness(other: str) -> float:
        return SequenceMatcher(None, name, other.rpartition(".")[2]).ratio()

    best = max(names, key=likeness, default="")
    return f"; did you mean {best}?" if best and likeness(best) >= ALIKE else ""
