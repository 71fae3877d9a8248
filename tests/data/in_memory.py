"""A table of texts that are in memory."""

from dataclasses import dataclass

from research.data.sources import Source


@dataclass(frozen=True)
class Texts:
    """Without `identities` every text is its own."""

    texts: tuple[str, ...]
    identities: tuple[str, ...] = ()
    size: int | None = None  # that it says it has
    name: str = "memory"
    fields: tuple[str, ...] = ("text",)

    def __len__(self) -> int:
        return len(self.texts)

    def record(self, i: int) -> dict[str, str]:
        return {"text": self.texts[i]}

    def identity(self, i: int) -> str:
        return (self.identities or self.texts)[i]

    def digest(self) -> tuple[str, int]:
        return repr(self), self.size or sum(len(text.encode()) for text in self.texts)


def source(*texts: str, identities: tuple[str, ...] = (), size: int | None = None) -> Source:
    return Source("memory", {"all": Texts(texts, identities, size)})
