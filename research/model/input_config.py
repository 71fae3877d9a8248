"""What a model reads besides tokens: the sizes of pictures and films, and the columns of tables."""

import dataclasses

from research.core.config import check_choices, require


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Pictures and films as a model reads them (model/inputs.py). Sizes in pixels."""

    height: int = 28  # of a picture
    width: int | None = None  # None: as the height
    channels: int = 1  # values of a pixel
    patch: int = 4  # side of the squares that a picture is cut into
    frames: int = 1  # of a film; 1: pictures
    tubelet: int = 1  # frames that a piece of a film is long

    def __post_init__(self):
        check_choices(self, "model.image")
        for name in ("height", "width", "channels", "patch", "frames", "tubelet"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.image.{name}", value, "a whole number of at least 1")
        high, wide = self.shape[-3:-1]
        fits = high % self.patch == 0 and wide % self.patch == 0
        require(fits, "model.image.patch", self.patch, f"a divisor of height {high} and width {wide}")
        whole = self.frames % self.tubelet == 0
        require(whole, "model.image.tubelet", self.tubelet, f"a divisor of {self.frames} frames")

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, channels), before them the frames of a film."""
        picture = (self.height, self.height if self.width is None else self.width, self.channels)
        return picture if self.frames == 1 else (self.frames, *picture)

    @property
    def patches(self) -> int:
        """How many pieces there are."""
        return self.frames // self.tubelet * (self.height // self.patch) * (self.shape[-2] // self.patch)

    @property
    def patch_values(self) -> int:
        """Numbers in a piece."""
        return self.tubelet * self.patch**2 * self.channels


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """The columns of a table: so many numbers, and columns of categories with so many kinds each."""

    numbers: int = 0  # columns of numbers
    categories: tuple[int, ...] = ()  # kinds in each column of categories

    def __post_init__(self):
        check_choices(self, "model.features")
        require(self.numbers >= 0, "model.features.numbers", self.numbers, "a whole number of at least 0")
        kinds = self.categories
        require(all(n >= 1 for n in kinds), "model.features.categories", kinds, "numbers of kinds, at least 1 each")
