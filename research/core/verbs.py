"""Command lines whose first word names a function: `research VERB`, `research bench NAME`, `research data NAME`."""

import difflib
from collections.abc import Callable, Mapping, Sequence

from research.core.errors import UserError

Verbs = Mapping[str, Callable[[Sequence[str]], int]]
"""Functions of the words that follow theirs; each is told of by its docstring and returns an exit code."""


def run(prog: str, verbs: Verbs, argv: Sequence[str], kind: str) -> int:
    """Runs the verb that the first word names, or prints what there is for `--help`; returns the exit code. `prog` ends with what the word stands
    for. Raises UserError, with the nearest name, for a word that is no verb (no `kind`), and for none."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage(prog, verbs))
        return 0
    if argv and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    near = difflib.get_close_matches(argv[0], verbs, 1, 0.3) if argv else []
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(verbs)}"
    raise UserError(f"{f'there is no {kind} {argv[0]!r}' if argv else f'usage: {prog} ...'}; {hint}")


def usage(prog: str, verbs: Verbs) -> str:
    """The verbs, one line each."""
    lines = [f"usage: {prog} ...", "", *(f"  {name:<8} {verb.__doc__}" for name, verb in verbs.items())]
    return "\n".join([*lines, "", f"{prog} --help lists the options."])
