"""Films made by rule: a shape moves over a picture, and how it moves is what is asked for."""

import numpy as np

from research.core.errors import UserError
from research.data.examples import Examples, source, split

FRAMES, SIZE = 8, 16  # of a film; pixels a side
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}  # (rows, columns) a step
SPEEDS = {"slowly": 0.5, "fast": 1.5}  # pixels a frame
CLASSES = tuple(f"{direction} {speed}" for direction in DIRECTIONS for speed in SPEEDS)
SHAPES = ("square", "disc", "cross")
NOISE = 0.1  # deviation of what is added to every pixel, of which white has 1
FEWEST = 80


@source("films")
def films(rest: str = "") -> Examples:
    """Films of a moving shape: `image` uint8 (n, 8, 16, 16, 1) and `label`, one of eight ways to move; a fifth is held out.

    `films:2000` makes 2,000 of them (the default), each a function of its number alone. Shape, size, brightness and place are drawn; the shape
    comes in again on the other side. Raises UserError for fewer than 80.
    """
    if rest and not (rest.isdecimal() and int(rest) >= FEWEST):
        raise UserError(
            f"films:{rest}: expected how many films to make, a whole number of at least {FEWEST}, as in films:2000"
        )
    label = np.arange(int(rest or 2000)) % len(CLASSES)
    image = np.stack([film(CLASSES[kind], number) for number, kind in enumerate(label.tolist())])
    return Examples(*split({"image": image, "label": label.astype(np.int32)}, 0.2), classes=CLASSES)


def film(kind: str, number: int) -> np.ndarray:
    """The film of a number that moves in a way of `CLASSES`: uint8 (8, 16, 16, 1)."""
    draw = np.random.default_rng(number)
    direction, speed = kind.split()
    shape, radius, brightness = draw.choice(SHAPES), draw.uniform(2, 4), draw.uniform(0.5, 1)
    start, step = draw.uniform(0, SIZE, 2), np.array(DIRECTIONS[direction]) * SPEEDS[speed] * draw.uniform(0.8, 1.2)
    frames = np.stack([_drawn(str(shape), start + t * step, radius) for t in range(FRAMES)])
    noisy = brightness * frames + draw.normal(0, NOISE, frames.shape)
    return (np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)[..., None]


def _drawn(shape: str, centre: np.ndarray, radius: float) -> np.ndarray:
    """A white shape on black, float (16, 16), soft at its edges, on a picture whose sides meet."""
    grid = np.arange(SIZE)
    rows, columns = (np.abs((grid - at + SIZE / 2) % SIZE - SIZE / 2) for at in centre)
    y, x = rows[:, None], columns[None]
    if shape == "square":
        inside = radius - np.maximum(x, y)
    elif shape == "disc":
        inside = radius - np.hypot(x, y)
    else:
        inside = np.minimum(radius + 1 - np.maximum(x, y), 1.2 - np.minimum(x, y))
    return np.clip(inside + 0.5, 0, 1)
