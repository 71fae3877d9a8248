"""What a finished run shows a person, beyond its curves: exhibits on the page of its report.

    exhibits.show(run.path, "Digits it got wrong", exhibits.gallery(images, captions, right))

`show` keeps a fragment of the page in the run directory. The other functions make such fragments from arrays and strings, and do nothing else:
everything they are given is text or numbers and never markup, pictures and sounds are within the page, and what is too much is counted and left out.
"""

from research.train.exhibits.audio import sounds
from research.train.exhibits.games import board_game, levels
from research.train.exhibits.pictures import clips, gallery, scenes
from research.train.exhibits.plots import bars, calibration, curves, scatter
from research.train.exhibits.store import show
from research.train.exhibits.tables import confusion, pairs, subtitles, table

__all__ = [
    "bars", "board_game", "calibration", "clips", "confusion", "curves", "gallery", "levels", "pairs", "scatter", "scenes",
    "show", "sounds", "subtitles", "table",
]  # fmt: skip
