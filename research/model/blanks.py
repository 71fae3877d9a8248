"""Blank filling, as training and sampling share it: four ids beyond the tokeniser's, and how a text to be continued is laid out.

GLM (Du et al. 2022, arXiv 2103.10360) hides spans of a text. Part A is the text with one mask in place of each span, seen in both directions;
part B holds the spans, each written from left to right after a start and up to an end. GLM-130B (Zeng et al. 2023, arXiv 2210.02414, section
2.2) has two masks: `[MASK]` for short blanks anywhere, whose tokens all take the position of their mask, and `[gMASK]` for what follows the
text, whose tokens take the positions after it. A model fills blanks if its layers have the pattern `prefix`.
"""

import dataclasses

import numpy as np

from research.model.config import ModelConfig

SPECIAL_IDS = 4


@dataclasses.dataclass(frozen=True)
class BlankIds:
    """The ids beyond `text` ids that stand for text. The end comes first, since it is the only one that is ever predicted."""

    text: int

    @property
    def end(self) -> int:
        """The last target of a blank."""
        return self.text

    @property
    def start(self) -> int:
        """The first input of a blank."""
        return self.text + 1

    @property
    def mask(self) -> int:
        """`[MASK]`, in place of a short blank."""
        return self.text + 2

    @property
    def long_mask(self) -> int:
        """`[gMASK]`, in place of the rest of a text."""
        return self.text + 3


def blank_ids(config: ModelConfig) -> BlankIds | None:
    """The special ids of a model that fills blanks, the last four of its vocabulary; None for any other."""
    return BlankIds(config.V - SPECIAL_IDS) if config.fills_blanks else None


def continued(text_P: np.ndarray, ids: BlankIds) -> tuple[np.ndarray, int]:
    """`(tokens (P + 2,), prefix)` of a text (P,) whose continuation comes next: the text and `[gMASK]`, seen in both directions, and a start."""
    return np.append(text_P, [ids.long_mask, ids.start]).astype(text_P.dtype), len(text_P) + 1
