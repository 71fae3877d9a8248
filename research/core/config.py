"""Frozen configs from the command line and back: typed overrides through tyro, errors that name the field and its neighbours."""

import contextlib
import dataclasses
import difflib
import io
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from research.core.errors import UserError


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values: nested dicts, lists, numbers, strings, None."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
        return [plain(item) for item in x] if isinstance(x, (list, tuple)) else x

    return plain(config)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer": {"beta1": 0.9}}` as `{"optimizer.beta1": 0.9}`."""
    out = {}
    for name, value in values.items():
        out.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return out


def field_types(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf field of a config, or of a class of configs, by its dotted name, with its annotation. A config's inner ones are what it holds, which
    may have more fields than their annotation."""
    cls = config if isinstance(config, type) else type(config)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = typing.cast(type, hint) if config is cls else getattr(config, field.name)
            yield from field_types(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hint


def nearest(name: str, known: Sequence[str]) -> str:
    """The known names closest to what was written, by the whole dotted name or by its last part."""

    def alike(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    def score(candidate: str) -> float:
        return max(alike(name, candidate), 0.98 * alike(name.rsplit(".", 1)[-1], candidate.rsplit(".", 1)[-1]))

    return max(known, key=score, default="")


def _canonical(name: str) -> str:
    return name.replace("_", "-")


def set_values(config: Any, values: dict[str, Any], source: str) -> Any:
    """A copy of `config` with flat or nested `values` set by dotted name, converted to the declared types.

    Raises UserError, naming `source`, the field and the nearest valid name, for a name that does not exist or a value of a wrong type.
    """
    kinds, converted = dict(field_types(config)), {}
    for name, value in flat(values).items():
        if name not in kinds:
            raise UserError(f"{source}: there is no field {name!r}; did you mean {nearest(name, list(kinds))!r}?")
        converted[name] = convert(value, kinds[name], f"{source}: {name}")
    return _rebuild(config, converted)


def _rebuild(config: Any, values: dict[str, Any]) -> Any:
    """All at once, so that a field's check sees its new neighbours and not the old ones."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        inner = {name[len(field.name) + 1 :]: v for name, v in values.items() if name.startswith(field.name + ".")}
        if field.name in values:
            changes[field.name] = values[field.name]
        elif inner:
            changes[field.name] = _rebuild(getattr(config, field.name), inner)
    return dataclasses.replace(config, **changes) if changes else config


def type_name(hint: Any) -> str:
    """An annotation in words: `int`, `number`, `one of a, b`, `... or None`."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if type(None) in args:
        return " or ".join([*(type_name(a) for a in args if a is not type(None)), "None"])
    if typing.get_origin(hint) is tuple:
        return f"any number of: {type_name(args[0])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def convert(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the annotated type; exact, so `1.5` is no int and `"1"` no number. Raises UserError, naming `where`."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(convert(item, args[0], where) for item in value)
    if origin is typing.Literal:
        ok = value in args
    elif type(None) in args:
        if value is None:
            return None
        return convert(value, next(a for a in args if a is not type(None)), where)
    elif hint is float:
        ok = isinstance(value, float) or (type(value) is int and abs(value) < 2**1023)
    elif hint is int:
        ok = isinstance(value, int) and not isinstance(value, bool)
    else:
        ok = isinstance(hint, type) and isinstance(value, hint)
    if not ok:
        raise UserError(f"{where} is {value!r}; expected {type_name(hint)}")
    return float(value) if hint is float else value


def check_choices(config, where: str) -> None:
    """Raises UserError when a field holds anything but what its annotation allows: an unknown choice, 1.5 for an int, a list for a tuple."""
    hints = typing.get_type_hints(type(config))
    for name in (field.name for field in dataclasses.fields(config)):
        hint, value = hints[name], getattr(config, name)
        if typing.get_origin(hint) is tuple:
            require(isinstance(value, tuple), f"{where}.{name}", value, "a tuple")
        if not dataclasses.is_dataclass(hint):
            convert(value, hint, f"{where}.{name}")


def require(ok: bool, where: str, value, expected: str) -> None:
    """Raises UserError naming the field, what it holds and what it should."""
    if not ok:
        raise UserError(f"{where} is {value!r}; expected {expected}")


def parse(default: Any, argv: Sequence[str], prog: str, description: str = "") -> Any:
    """`default` with the command line's overrides (`--optimizer.schedule.warmup-steps 200`).

    Field names may be written with `-` or `_`. Raises UserError naming the field and the nearest valid name for an unknown option, the
    field and its type for an ill-typed value. `--help` prints and exits.
    """
    import tyro

    if not {"-h", "--help"} & set(argv):
        _check_names(default, argv)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            return tyro.cli(type(default), prog=prog, description=description, args=list(argv), default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            print(out.getvalue(), end="")
            raise
        raise UserError(_ill_typed(default, argv, prog) or " ".join(err.getvalue().split())) from None


def _options(config: Any) -> dict[str, Any]:
    """Every option the parser knows: dotted names, with the prefix of `flattened` fields removed, and `no-` forms of flags."""
    flattened = getattr(config, "flattened", ())
    names = {}
    for name, hint in field_types(config):
        head, _, rest = name.partition(".")
        name = rest if head in flattened and rest else name
        names[_canonical(name)] = hint
        if hint is bool:
            parent, dot, last = _canonical(name).rpartition(".")
            names[f"{parent}{dot}no-{last}"] = hint
    return names


def options_given(argv: Sequence[str]) -> list[str]:
    """The names of the options on a command line, as they are written there."""
    return [name for name, _ in _written(argv)]


def _written(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The options of a command line with the words that follow each. A word that reads as a negative number is a value."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            groups.append((name, [value] if has_value else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            groups.append(("", [word]))
    return groups


def _check_names(config: Any, argv: Sequence[str]) -> None:
    known = _options(config)
    for name, words in _written(argv):
        if not name:
            raise UserError(f"unexpected argument {(words or ['--'])[0]!r}; overrides are written --FIELD VALUE")
        if _canonical(name) not in known:
            raise UserError(f"there is no option --{name}; did you mean --{nearest(_canonical(name), list(known))}?")
        expected = known[_canonical(name)]
        if expected is bool and words:
            raise UserError(f"--{name} takes no value, but {words[0]!r} follows it")
        if len(words) > 1 and tuple not in (expected, typing.get_origin(expected)):
            raise UserError(
                f"unexpected argument {words[1]!r} after --{name} {words[0]}; overrides are written --FIELD VALUE"
            )


def _ill_typed(default: Any, argv: Sequence[str], prog: str) -> str | None:
    """Which option the parser refuses when it stands alone, in one line."""
    import tyro

    known = _options(default)
    for name, words in _written(argv):
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                tyro.cli(type(default), prog=prog, args=[f"--{name}", *words], default=default)
        except UserError:
            continue  # fine by itself, wrong beside a default; the whole line decides
        except SystemExit:
            given = repr(" ".join(words)) if words else "given no value"
            hint = (
                f" (a value that starts with a dash is written --{name}={words[0]})"
                if words and words[0].startswith("-")
                else ""
            )
            return f"--{name} is {given}; expected {type_name(known[_canonical(name)])}{hint}"
    return None
