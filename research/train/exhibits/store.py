"""The exhibits of a run: fragments of a page under `exhibits/` in its directory, `NN-slug.html`, in the order in which they were first shown.

A fragment is a whole section, and its first line holds the title by which it is found again. A run that goes on keeps its exhibits; `fresh` deletes
them with the rest.
"""

import re
from pathlib import Path

from research.core.errors import UserError
from research.data.files import write_atomically
from research.train import hosts, rundir
from research.train.markup import escaped

FOLDER = "exhibits"
LARGEST = 64 << 20  # bytes of all exhibits on a page; a browser opens that in a few seconds
NAME = re.compile(r"(\d+)-.*\.html")


def show(run_path: str | Path, title: str, html: str) -> Path:
    """Adds the fragment `html` under the heading `title` to a run, in the place of the one shown under that title before, and returns its file.
    The next `report.write_report` has it on the page. `html` is taken as it is: the functions beside this one escape what they are given.

    Of several processes the first writes. Raises UserError when `run_path` is no run directory or cannot be written, and for an empty title.
    """
    path, title = Path(run_path), " ".join(title.split())
    rundir.read_config(path)
    if not title:
        raise UserError(
            "an exhibit has an empty title; expected a heading of its own, by which it is replaced when shown again"
        )
    head = f'<section class="exhibit"><h2>{escaped(title)}</h2>'
    existing = fragments(path)
    number = max((n for n, _ in existing), default=0) + 1
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "exhibit"
    file = next(
        (found for _, found in existing if _head(_read(found)) == head), path / FOLDER / f"{number:02d}-{slug}.html"
    )
    if hosts.is_first():
        try:
            file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {file.parent}: {error.strerror or error}") from error
        write_atomically(file, f"{head}\n{html}\n</section>\n".encode(errors="replace"))
    return file


def fragments(path: Path) -> list[tuple[int, Path]]:
    """(number, file) of a run's exhibits, in order."""
    names = (path / FOLDER).iterdir() if (path / FOLDER).is_dir() else ()
    return sorted((int(match[1]), file) for file in names if (match := NAME.fullmatch(file.name)))


def sections(path: Path) -> list[str]:
    """The exhibits of a run as sections of a page, in order. What would make the page larger than a browser likes is named, and stays a file.

    Raises UserError when one cannot be read.
    """
    found, total = [], 0
    for _, file in fragments(path):
        content = _read(file)
        if total + len(content) <= LARGEST:
            total += len(content)
            found.append(content.decode(errors="replace"))
        else:
            told = f"{FOLDER}/{file.name} has {len(content) / 2**20:.1f} MiB, too much for this page beside the others."
            found.append(f'{_head(content)}<p class="none">{escaped(told)}</p></section>\n')
    return found


def _head(content: bytes) -> str:
    return content.partition(b"\n")[0].decode(errors="replace")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
