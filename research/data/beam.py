"""Units of a corpus made by an Apache Beam pipeline, on whatever its runner runs on: `pip install 'purestep[beam]'`.

The pipeline is unit numbers, dealt out anew, each made by `units.make`: what any worker writes is what this machine would. Workers have to see the
source, the corpus's folder and the tokeniser in it under the same paths, as on a shared file system, and have this package installed.
"""

import contextlib
import logging
import shlex
import warnings
from collections.abc import Iterator

from research.core.errors import UserError
from research.data import units
from research.data.shards import Unfinished
from research.data.tokens import Engine


def engine(options: str) -> Engine:
    """Returns what makes the units of a job under Beam's own pipeline options, each NAME=VALUE or NAME, with spaces between them; without a runner
    Beam's default one. Raises UserError where Beam is not installed, and for options that it does not know."""
    try:
        with _quiet():
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise UserError(f"--beam needs {error.name}, which is not installed: pip install 'purestep[beam]'") from error
    try:
        with _quiet():
            parsed = PipelineOptions([f"--{word.removeprefix('--')}" for word in shlex.split(options)])
            known = parsed.get_all_options(retain_unknown_options=False)
            unknown = set(parsed.get_all_options(retain_unknown_options=True)) - set(known)
    except (ValueError, SystemExit) as error:
        raise UserError(f"--beam {options!r} are no options of a Beam pipeline: {error}") from error
    if unknown:
        raise UserError(f"--beam {options!r}: Beam has no pipeline option {sorted(unknown)[0]!r}")

    def run(job: units.Job, seen: units.Seen) -> None:
        text = job.to_json()
        try:
            with _quiet(), beam.Pipeline(options=parsed) as pipeline:
                (
                    pipeline
                    | beam.Create(range(len(job.units)))
                    | beam.Reshuffle()
                    | beam.Map(_make, text)
                )  # fmt: skip
        except Exception as error:
            if (wrong := _cause(error)) is not None:
                raise UserError(wrong) from error
            raise Unfinished(
                f"the Beam pipeline failed: {' '.join(str(error).split())[:300]}. What is done is kept: start again."
            ) from error
        if lacking := [n for n in range(len(job.units)) if not units.is_made(job, n)]:
            raise Unfinished(
                f"Beam's workers made {len(job.units) - len(lacking)} of {len(job.units)} units in {job.folder} as this machine sees it. "
                "Source and folder have to lie where all of them see them under the same path."
            )
        seen(job.size)

    return run


WRONG = (
    "the data cannot be used: "  # what marks a UserError on its way through a runner, which keeps an error's text alone
)


def _make(number: int, job: str) -> int:
    """One unit, on a worker."""
    try:
        units.make(units.Job.from_json(job), number)
    except UserError as error:
        raise RuntimeError(f"{WRONG}{error}\0") from error
    return number


def _cause(error: BaseException) -> str | None:
    """What is wrong with the data, where that ended the pipeline."""
    _, found, rest = str(error).partition(WRONG)
    return rest.partition("\0")[0] if found else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the runner's own warnings and its log of every stage."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
