"""The folder of a published model: one on this machine, or a copy of the hub's in its own cache; and the JSON files in it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core.errors import UserError

FILES = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.bpe",
    "*.tiktoken",
    "*.jinja",
)  # what is fetched from the hub
OTHERS = ("*/*", "consolidated*")  # what is not: other formats of the same weights
MOST_JSON = 1 << 26  # bytes


def locate(where: str | Path, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """The folder itself, or that of a hub id in the hub's cache, its `files` fetched first. Raises UserError for what is neither, and offline."""
    if not isinstance(where, (str, Path)) or not str(where):
        raise UserError(f"there is {where!r} where the folder of a model or an id of the hub was expected")
    path, name = Path(where).expanduser(), str(where)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(
            f"{name} is a file; give the folder that holds it beside its config.json. Of weights only safetensors are read"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise UserError(f"{name}: there is no such folder, and it is no id of the hub such as openai-community/gpt2")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(files), ignore_patterns=list(OTHERS)
            )
        )
    except errors.GatedRepoError:
        raise UserError(
            f"{name} is gated: accept its licence on the hub and log in (`hf auth login`), then try again"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name}: there is no such folder here and no such model on the hub ({_first_line(error)})"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: there is no such folder, and the hub cannot be reached ({_first_line(error)}). On a machine with a network: "
            f"`hf download {name} --local-dir DIR`; then give DIR here"
        ) from None
    except Exception as error:  # the hub's own transport has errors of its own, all of them a hub that was not reached
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        raise UserError(
            f"{name}: there is no such folder, and the hub cannot be reached ({_first_line(error)})"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a folder. Raises UserError where it is missing, too large, or none."""
    file = folder / name
    try:
        with open(file, "rb") as stream:
            content = stream.read(MOST_JSON + 1)
    except OSError as error:
        raise UserError(
            f"{folder} has no {name} that can be read ({error.strerror or error}); give the folder of a model"
        ) from None
    try:
        values = json.loads(content.decode("utf-8")) if len(content) <= MOST_JSON else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object of at most {MOST_JSON >> 20} MiB; fetch it again")
    return values
