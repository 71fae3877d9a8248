"""Records by name: one line of specification opens as named parts, or as one table to be split by hash.

| form                                    | fields                       | more in        |
| --------------------------------------- | ---------------------------- | -------------- |
| `jsonl:PATH`, `json:PATH`, `csv:PATH`, `tsv:PATH` | named by the file  | `lines.py`     |
| `parquet:PATH`, `hf:FOLDER`             | the columns                  | `arrow.py`     |
| `pairs:a.en,b.de`, `pairs:PATH`         | `source`, `target`           | `pairs.py`     |
| `images:DIR`, `audio:DIR`               | `image` or `audio`, `label`, `path` | `media.py` |
| `tfds:NAME[/CONFIG][:SPLIT]`            | the features                 | `tfds.py`      |

PATH is a file, a folder or a glob. Train, validation and test are separate by construction: they are files, folders or
splits of their own, or `split` takes them apart by hash. Heavy libraries are imported when their form is asked for.
"""

import difflib
from collections.abc import Mapping

from research.core.errors import UserError
from research.data.tables.table import Table, require_field

MEDIA = ("images", "audio")
KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "hf", "pairs", *MEDIA, "tfds")
FORMS = (
    "jsonl:PATH, json:PATH, csv:PATH, tsv:PATH, parquet:PATH (a file, a folder or a glob), hf:FOLDER, pairs:A,B, pairs:PATH, "
    "images:DIR, audio:DIR, tfds:NAME[/CONFIG][:SPLIT]"
)


def open_tables(spec: str, *, text_field: str | None = None) -> Mapping[str, Table]:
    """Returns the tables that `spec` names (see the forms above): {"all": table}, or parts of the source's own named
    "train", "validation" and "test"; further splits keep their names.

    With `text_field` that field is the identity of a record, and each record has to have text in it (pairs, images and
    sounds have identities of their own). Raises UserError for an unknown form, with the nearest one, for what is not
    there or is damaged, and for a field that is not there, with those that are.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        advice = f" Did you mean {near[0] + ':'!r}?" if near else ""
        raise UserError(f"unknown source of records {spec!r}.{advice} Known forms: {FORMS}")
    if not rest:
        raise UserError(f"the source of records {spec!r} names nothing after the colon. Known forms: {FORMS}")
    tables = _open(kind, spec, rest, text_field)
    if text_field is not None:
        for table in tables.values():
            require_field(table, text_field, "--text-field")
    return tables


def _open(kind: str, spec: str, rest: str, text_field: str | None) -> dict[str, Table]:
    if kind in ("jsonl", "json", "csv", "tsv"):
        from research.data.tables.lines import open_lines

        return open_lines(spec, kind, rest, text_field)
    if kind in ("parquet", "hf"):
        from research.data.tables.arrow import open_parquet, open_saved

        return (open_parquet if kind == "parquet" else open_saved)(spec, rest, text_field)
    if kind == "pairs":
        from research.data.tables.pairs import open_pairs

        return open_pairs(spec, rest)
    if kind in MEDIA:
        from research.data.tables.media import open_media

        return open_media(spec, "image" if kind == "images" else "audio", rest)
    from research.data.tables.tfds import open_tfds

    return open_tfds(spec, rest, text_field)
