"""JSON schemas as regular expressions of the JSON texts that satisfy them.

Every text matched satisfies the schema, but not every text that satisfies it is matched: properties come in the schema's order
and no others are added, at most one space stands between tokens, strings hold no control characters and no \\u escapes, and a
given value is written one way. What cannot be said so is refused by name.
"""

import json
import math
import re
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.sample import automata

Schema = dict[str, Any]

_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
_NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
# What each type may have beside "type"; a keyword not here is refused.
_OF_TYPE = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_DEPTH = 2  # how deep arrays and objects nest where a schema allows anything

_INTEGER = "-?(?:0|[1-9][0-9]*)"
_PLAIN = {
    "integer": _INTEGER,
    "number": rf"{_INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?",
    "boolean": "(?:true|false)",
    "null": "null",
}
_CHARACTER = r'(?:[^"\\\x00-\x1f\x7f-\x9f]|\\["\\/bfnrt])'
_TEXT = f'"{_CHARACTER}*"'
_SPACE = " ?"
_COMMA = f"{_SPACE},{_SPACE}"
_FORMATS = {
    "date": "[0-9]{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)",  # no leap days
    "time": r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"


def to_regex(schema: str | Schema) -> str:
    """Returns the regular expression, for `automata.from_regex`, of JSON texts that satisfy `schema`, given as JSON or as what
    JSON reads to.

    Raises UserError, with its place, for what is not a schema and for a keyword that is not supported: types with lengths, bounds of integers,
    `pattern`, the formats date, time, date-time and uuid, `items`, `prefixItems`, numbers of items, `properties`, `required`,
    `additionalProperties`, `enum`, `const`, `anyOf`, and references within the schema that do not recur, are.
    """
    try:
        root = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
        return _regex(root, root, "#", ())
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the JSON schema {automata.shown(str(schema))} cannot be read: {error}") from error


def _regex(node: Any, root: Any, where: str, inside: tuple[str, ...]) -> str:
    """The expression of the schema `node` at the place `where`; `inside` are the references that it stands in."""
    if node is True:
        return _anything(_DEPTH)
    if not isinstance(node, dict):
        raise UserError(f"JSON schema at {where}: {automata.shown(str(node))} is no schema that a text can satisfy.")
    node = {name: value for name, value in node.items() if name not in _NOTES}
    if not node:
        return _anything(_DEPTH)
    if "$ref" in node:
        _only(node, {"$ref"}, where)
        return _regex(_target(node["$ref"], root, where, inside), root, node["$ref"], (*inside, node["$ref"]))
    for name in ("anyOf", "allOf"):
        if name in node:
            _only(node, {name}, where)
            return _choice(node[name], name, root, where, inside)
    if "enum" in node or "const" in node:
        return _values(node, where)
    types = node.get("type", "object" if "properties" in node else None)
    types = _full_list(types, f"{where}/type") if isinstance(types, list) else [types]
    return _any(_typed(node, one, types, root, where, inside) for one in types)


def _any(options: Any) -> str:
    return f"(?:{'|'.join(options)})"


def _anything(depth: int) -> str:
    kinds = [_TEXT, *(_PLAIN[kind] for kind in ("number", "boolean", "null"))]
    if depth:
        kinds += [_map(_anything(depth - 1)), _list(_anything(depth - 1))]
    return _any(kinds)


def _list(item: str, least: int = 0, most: int | None = None) -> str:
    """An array of at least `least` and at most `most` items."""
    return rf"\[{_SPACE}{_repeated(item, least, most)}{_SPACE}\]"


def _map(value: str) -> str:
    """An object of any names."""
    pairs = _repeated(f"{_TEXT}{_SPACE}:{_SPACE}{value}", 0, None)
    return rf"\{{{_SPACE}{pairs}{_SPACE}\}}"


def _repeated(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    more = f"{item}(?:{_COMMA}{item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    return more if least else f"(?:{more})?"


def _target(name: Any, root: Any, where: str, inside: tuple[str, ...]) -> Any:
    """What a reference names. Raises UserError where it is not in this schema, or contains itself: that is no regular
    language."""
    if not isinstance(name, str) or (name != "#" and not name.startswith("#/")):
        raise UserError(f"JSON schema at {where}: the reference {name!r} is not to a place in this schema (#/...).")
    if name in inside or name == "#":
        raise UserError(f"JSON schema at {where}: the reference {name!r} contains itself, which is not supported.")
    node = root
    for part in name.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"JSON schema at {where}: there is no {name!r} in it.")
        node = node[part]
    return node


def _choice(options: Any, name: str, root: Any, where: str, inside: tuple[str, ...]) -> str:
    options = _full_list(options, f"{where}/{name}")
    if name == "allOf" and len(options) > 1:
        raise UserError(f"JSON schema at {where}: allOf of several is not supported. Write them as one schema.")
    return _any(_regex(option, root, f"{where}/{name}/{i}", inside) for i, option in enumerate(options))


def _values(node: Schema, where: str) -> str:
    """`enum` or `const`, whose values are already right or wrong by the type beside them."""
    _only(node, {"enum", "type"} if "enum" in node else {"const", "type"}, where)
    values = _full_list(node["enum"], f"{where}/enum") if "enum" in node else [node["const"]]
    types = node.get("type")
    types = [types] if isinstance(types, str) else types
    values = [value for value in values if types is None or any(_is(value, kind) for kind in types)]
    return _any(_written(value) for value in _full_list(values, where))


def _written(value: Any) -> str:
    """A given value, escaped."""
    return re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", json.dumps(value, ensure_ascii=False, allow_nan=False))


def _is(value: Any, kind: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    checks = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": number,
        "integer": number and float(value).is_integer(),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    return checks.get(kind, False)


def _typed(node: Schema, kind: Any, kinds: list, root: Any, where: str, inside: tuple[str, ...]) -> str:
    if not isinstance(kind, str) or kind not in _OF_TYPE:
        raise UserError(
            f"JSON schema at {where}: {_names(node)} without a type among {_names(_OF_TYPE)} is not supported."
        )
    _only(node, {"type"}.union(*(_OF_TYPE.get(one, ()) for one in kinds if isinstance(one, str))), where)
    if kind == "string":
        return f'"{_string(node, where)}"'
    if kind == "array":
        return _array(node, root, where, inside)
    if kind == "object":
        return _object(node, root, where, inside)
    return _integer(node, where) if kind == "integer" else _PLAIN[kind]


def _integer(node: Schema, where: str) -> str:
    bounds = {name: node[name] for name in _OF_TYPE["integer"] & node.keys()}
    if any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in bounds.values()):
        raise UserError(f"JSON schema at {where}: {_names(bounds)} of an integer are numbers.")
    least = [math.ceil(bounds["minimum"])] if "minimum" in bounds else []
    least += [math.floor(bounds["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in bounds else []
    most = [math.floor(bounds["maximum"])] if "maximum" in bounds else []
    most += [math.ceil(bounds["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in bounds else []
    if least and most and max(least) > min(most):
        raise UserError(f"JSON schema at {where}: no integer lies within {json.dumps(bounds, sort_keys=True)}.")
    return integers(max(least, default=None), min(most, default=None)) if bounds else _INTEGER


def integers(least: int | None, most: int | None) -> str:
    """The expression of the integers from `least` to `most`, None where there is no bound."""
    options = []
    if most is None or most >= 0:
        options.append(_naturals(max(least or 0, 0) if least is not None else 0, most))
    if least is None or least < 0:
        options.append("-" + _naturals(max(1, 1 if most is None else -most), None if least is None else -least))
    return _any(options)


def _naturals(least: int, most: int | None) -> str:
    """Those from `least` >= 0 to `most`, by their number of digits."""
    digits = len(str(least if most is None else most))
    options = []
    for n in range(len(str(least)), digits + 1):
        low, high = max(least, 10 ** (n - 1) if n > 1 else 0), 10**n - 1 if most is None else min(most, 10**n - 1)
        options.append(_of_one_length(str(low), str(high)))
    return _any([*options, f"[1-9][0-9]{{{digits},}}"] if most is None else options)


def _of_one_length(low: str, high: str) -> str:
    """Digits from `low` to `high`, which are as long as each other."""
    rest = len(low) - 1
    if rest < 0:
        return ""
    if low[0] == high[0]:
        return low[0] + _of_one_length(low[1:], high[1:])
    options = [low[0] + _of_one_length(low[1:], "9" * rest), high[0] + _of_one_length("0" * rest, high[1:])]
    if int(high[0]) - int(low[0]) > 1:
        options.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}][0-9]{{{rest}}}")
    return _any(options)


def _string(node: Schema, where: str) -> str:
    """What stands between the quotes."""
    least, most = _sizes(node, "minLength", "maxLength", where)
    given = node.keys() & {"pattern", "format"}
    if len(given) + bool(node.keys() & {"minLength", "maxLength"}) > 1:
        names = node.keys() & _OF_TYPE["string"]
        raise UserError(f"JSON schema at {where}: {_names(names)} together are not supported. Write one pattern.")
    if "format" in node and node["format"] not in _FORMATS:
        raise UserError(
            f"JSON schema at {where}: format {node['format']!r} is not supported. Known: {_names(_FORMATS)}."
        )
    if not given:
        return f"{_CHARACTER}{{{least},{'' if most is None else most}}}"
    return f"(?:{_FORMATS[node['format']] if 'format' in node else _pattern(node['pattern'], where)})"


def _pattern(pattern: Any, where: str) -> str:
    """The pattern without its anchors. Raises UserError where it is none, or matches what JSON writes in another way."""
    if not isinstance(pattern, str):
        raise UserError(f"JSON schema at {where}: the pattern {pattern!r} is not a string.")
    pattern = automata.without_anchors(pattern)
    table, _ = automata.from_regex(pattern, f"pattern at {where} of the JSON schema")
    if np.any(table[:, [*range(32), ord('"'), ord("\\")]] >= 0):
        raise UserError(
            f"JSON schema at {where}: the pattern {pattern!r} matches quotes, backslashes or control characters, which a JSON "
            r'string cannot hold as they are. Leave them out, as in [^"\\\x00-\x1f] for a dot.'
        )
    return pattern


def _array(node: Schema, root: Any, where: str, inside: tuple[str, ...]) -> str:
    least, most = _sizes(node, "minItems", "maxItems", where)
    if "prefixItems" not in node:
        return _list(_regex(node.get("items", True), root, f"{where}/items", inside), least, most)
    first = _full_list(node["prefixItems"], f"{where}/prefixItems")
    if not least <= len(first) <= (len(first) if most is None else most):
        raise UserError(
            f"JSON schema at {where}: only as many items as prefixItems describes are supported, {len(first)}."
        )
    items = [_regex(one, root, f"{where}/prefixItems/{i}", inside) for i, one in enumerate(first)]
    return rf"\[{_SPACE}{_COMMA.join(items)}{_SPACE}\]"


def _object(node: Schema, root: Any, where: str, inside: tuple[str, ...]) -> str:
    properties, required = node.get("properties", {}), node.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise UserError(f"JSON schema at {where}: properties are an object and required is a list of their names.")
    if unknown := [name for name in required if name not in properties]:
        raise UserError(f"JSON schema at {where}: required {_names(unknown)} is not among its properties.")
    more = node.get("additionalProperties", True)
    if "properties" not in node and more is not False:
        inner = _anything(_DEPTH - 1) if more is True else _regex(more, root, f"{where}/additionalProperties", inside)
        return _map(inner)
    pairs = [
        (
            f"{_written(name)}{_SPACE}:{_SPACE}{_regex(value, root, f'{where}/properties/{name}', inside)}",
            name in required,
        )
        for name, value in properties.items()
    ]
    return rf"\{{{_SPACE}{_in_order(pairs)}{_SPACE}\}}"


def _in_order(pairs: list[tuple[str, bool]]) -> str:
    """Parts in their order with commas between them; those without True may be left out."""

    def behind(i: int) -> str:
        return "".join(f"{_COMMA}{one}" if needed else f"(?:{_COMMA}{one})?" for one, needed in pairs[i + 1 :])

    first = next((i for i, (_, needed) in enumerate(pairs) if needed), None)
    if first is None:
        return f"{_any(one + behind(i) for i, (one, _) in enumerate(pairs))}?" if pairs else ""
    before = "".join(f"(?:{one}{_COMMA})?" for one, _ in pairs[:first])
    return before + pairs[first][0] + behind(first)


def _sizes(node: Schema, least: str, most: str, where: str) -> tuple[int, int | None]:
    sizes = {name: node[name] for name in (least, most) if name in node}
    found = sizes.get(least, 0), sizes.get(most)
    if any(type(size) is not int or size < 0 for size in sizes.values()) or (most in sizes and found[0] > found[1]):
        raise UserError(f"JSON schema at {where}: {sizes} are not numbers from 0, the smaller first.")
    return found


def _full_list(value: Any, where: str) -> list:
    if not isinstance(value, list) or not value:
        raise UserError(f"JSON schema at {where}: expected a list of at least one, got {automata.shown(str(value))}.")
    return value


def _only(node: Schema, known: set[str], where: str) -> None:
    if unknown := node.keys() - known:
        raise UserError(f"JSON schema at {where}: {_names(unknown)} is not supported here. Supported: {_names(known)}.")


def _names(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))
