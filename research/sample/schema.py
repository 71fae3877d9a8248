"""JSON schemas as regular expressions of the JSON texts that satisfy them.

The library writes the expression, but it ignores keywords that it does not know, and some that it does know it takes for
something else. So a schema is first brought into the part that it translates faithfully, references put in place, and
anything outside that part is refused by name. Every text matched satisfies the schema, but not every text that satisfies it
is matched: properties come in the schema's order and no others are added, at most one space stands between tokens, strings
hold no \\u escapes, and numbers with an exponent write its sign.
"""

import json
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
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_DEPTH = 2  # how deep arrays and objects nest where a schema allows anything
_FORMATS = {
    "date": "[0-9]{4}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)",  # no leap days
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"


def to_regex(schema: str | Schema) -> str:
    """Returns the regular expression, for `automata.from_regex`, of JSON texts that satisfy `schema`, given as JSON or as what
    JSON reads to.

    Raises UserError, with its place, for what is not a schema and for a keyword that is not supported: types with lengths,
    `pattern`, the formats date, time, date-time and uuid, `items`, `prefixItems`, numbers of items, `properties`, `required`,
    `additionalProperties`, `enum`, `const`, `anyOf`, and references within the schema that do not recur, are.
    """
    try:
        root = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
        plain = _plain(root, root, "#", ())
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the JSON schema {automata.shown(str(schema))} cannot be read: {error}") from error
    try:
        from outlines_core.json_schema import build_regex_from_schema
    except ImportError as error:
        raise UserError(automata.MISSING) from error
    try:
        return build_regex_from_schema(json.dumps(plain))
    except Exception as error:
        raise UserError(f"the JSON schema {automata.shown(str(schema))} cannot be compiled: {error}") from error


def _plain(node: Any, root: Any, where: str, inside: tuple[str, ...]) -> Schema:
    """The schema `node` in the library's faithful part; `inside` are the references that it stands in."""
    if node is True:
        return _anything(_DEPTH)
    if not isinstance(node, dict):
        raise UserError(f"JSON schema at {where}: {automata.shown(str(node))} is no schema that a text can satisfy.")
    node = {name: value for name, value in node.items() if name not in _NOTES}
    if not node:
        return _anything(_DEPTH)
    if "$ref" in node:
        _only(node, {"$ref"}, where)
        return _plain(_target(node["$ref"], root, where, inside), root, node["$ref"], (*inside, node["$ref"]))
    for name in ("anyOf", "allOf"):
        if name in node:
            _only(node, {name}, where)
            return _choice(node[name], name, root, where, inside)
    if "enum" in node or "const" in node:
        return _values(node, where)
    types = node.get("type", "object" if "properties" in node else None)
    if isinstance(types, list):
        return {"anyOf": [_typed(node, one, types, root, where, inside) for one in _full_list(types, f"{where}/type")]}
    return _typed(node, types, [types], root, where, inside)


def _anything(depth: int) -> Schema:
    kinds: list[Schema] = [{"type": kind} for kind in ("string", "number", "boolean", "null")]
    if depth:
        kinds.append({"type": "object", "additionalProperties": _anything(depth - 1)})
        kinds.append({"type": "array", "items": _anything(depth - 1)})
    return {"anyOf": kinds}


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


def _choice(options: Any, name: str, root: Any, where: str, inside: tuple[str, ...]) -> Schema:
    options = _full_list(options, f"{where}/{name}")
    if name == "allOf" and len(options) > 1:
        raise UserError(f"JSON schema at {where}: allOf of several is not supported. Write them as one schema.")
    return {"anyOf": [_plain(option, root, f"{where}/{name}/{i}", inside) for i, option in enumerate(options)]}


def _values(node: Schema, where: str) -> Schema:
    """`enum` or `const`, whose values are already right or wrong by the type beside them."""
    _only(node, {"enum", "type"} if "enum" in node else {"const", "type"}, where)
    values = _full_list(node["enum"], f"{where}/enum") if "enum" in node else [node["const"]]
    if any(isinstance(value, (dict, list)) for value in values):
        raise UserError(
            f"JSON schema at {where}: objects and arrays as values are not supported. Describe them by type."
        )
    types = node.get("type")
    types = [types] if isinstance(types, str) else types
    values = [value for value in values if types is None or any(_is(value, kind) for kind in types)]
    return {"enum": _full_list(values, where)}


def _is(value: Any, kind: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    checks = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": number,
    }
    return checks.get(kind, kind == "integer" and number and float(value).is_integer())


def _typed(node: Schema, kind: Any, kinds: list, root: Any, where: str, inside: tuple[str, ...]) -> Schema:
    if not isinstance(kind, str) or kind not in _OF_TYPE:
        raise UserError(
            f"JSON schema at {where}: {_names(node)} without a type among {_names(_OF_TYPE)} is not supported."
        )
    _only(node, {"type"}.union(*(_OF_TYPE.get(one, ()) for one in kinds if isinstance(one, str))), where)
    node = {name: value for name, value in node.items() if name in _OF_TYPE[kind]}
    if kind == "string":
        return _string(node, where)
    if kind == "array":
        return _array(node, root, where, inside)
    if kind == "object":
        return _object(node, root, where, inside)
    return {"type": kind}


def _string(node: Schema, where: str) -> Schema:
    sizes = _sizes(node, "minLength", "maxLength", where)
    if len({"pattern", "format"} & node.keys()) + bool(sizes) > 1:
        raise UserError(f"JSON schema at {where}: {_names(node)} together are not supported. Write one pattern.")
    if "format" in node and node["format"] not in _FORMATS:
        raise UserError(
            f"JSON schema at {where}: format {node['format']!r} is not supported. Known: {_names(_FORMATS)}."
        )
    pattern = _FORMATS[node["format"]] if "format" in node else node.get("pattern")
    if pattern is None:
        return {"type": "string", **sizes}
    if not isinstance(pattern, str):
        raise UserError(f"JSON schema at {where}: the pattern {pattern!r} is not a string.")
    pattern = automata.without_anchors(pattern)
    table, _ = automata.from_regex(pattern, f"pattern at {where} of the JSON schema")
    if np.any(table[:, [*range(32), ord('"'), ord("\\")]] >= 0):
        raise UserError(
            f"JSON schema at {where}: the pattern {pattern!r} matches quotes, backslashes or control characters, which a JSON "
            r'string cannot hold as they are. Leave them out, as in [^"\\\x00-\x1f] for a dot.'
        )
    return {"type": "string", "pattern": f"(?:{pattern})"}


def _array(node: Schema, root: Any, where: str, inside: tuple[str, ...]) -> Schema:
    sizes = _sizes(node, "minItems", "maxItems", where)
    if "prefixItems" in node:
        first = _full_list(node["prefixItems"], f"{where}/prefixItems")
        if not sizes.get("minItems", 0) <= len(first) <= sizes.get("maxItems", len(first)):
            raise UserError(
                f"JSON schema at {where}: only as many items as prefixItems describes are supported, {len(first)}."
            )
        return {"prefixItems": [_plain(one, root, f"{where}/prefixItems/{i}", inside) for i, one in enumerate(first)]}
    return {"type": "array", "items": _plain(node.get("items", True), root, f"{where}/items", inside), **sizes}


def _object(node: Schema, root: Any, where: str, inside: tuple[str, ...]) -> Schema:
    properties, required = node.get("properties", {}), node.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise UserError(f"JSON schema at {where}: properties are an object and required is a list of their names.")
    if unknown := [name for name in required if name not in properties]:
        raise UserError(f"JSON schema at {where}: required {_names(unknown)} is not among its properties.")
    if odd := [name for name in properties if json.dumps(name, ensure_ascii=False) != f'"{name}"']:
        raise UserError(
            f"JSON schema at {where}: the property name {odd[0]!r} has quotes, backslashes or control characters."
        )
    more = node.get("additionalProperties", True)
    if "properties" in node or more is False:
        inner = {name: _plain(value, root, f"{where}/properties/{name}", inside) for name, value in properties.items()}
        return {"type": "object", "properties": inner, "required": required}
    values = _anything(_DEPTH - 1) if more is True else _plain(more, root, f"{where}/additionalProperties", inside)
    return {"type": "object", "additionalProperties": values}


def _sizes(node: Schema, least: str, most: str, where: str) -> Schema:
    sizes = {name: node[name] for name in (least, most) if name in node}
    if any(type(size) is not int or size < 0 for size in sizes.values()) or sizes.get(least, 0) > sizes.get(
        most, np.inf
    ):
        raise UserError(f"JSON schema at {where}: {sizes} are not numbers from 0, the smaller first.")
    return sizes


def _full_list(value: Any, where: str) -> list:
    if not isinstance(value, list) or not value:
        raise UserError(f"JSON schema at {where}: expected a list of at least one, got {automata.shown(str(value))}.")
    return value


def _only(node: Schema, known: set[str], where: str) -> None:
    if unknown := node.keys() - known:
        raise UserError(f"JSON schema at {where}: {_names(unknown)} is not supported here. Supported: {_names(known)}.")


def _names(names: Any) -> str:
    return ", ".join(sorted(map(str, names)))
