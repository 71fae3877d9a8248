"""What tests read pages with."""

from html.parser import HTMLParser

VOID = {"meta", "img", "source", "line", "path", "circle", "rect", "image"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers elements with their attributes, references, scripts and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.data, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.tags = [tag for tag, _ in self.elements]
        names = ("src", "href", "srcset", "action", "data", "poster", "background")
        self.references = [
            value for _, attributes in self.elements for name, value in attributes.items() if name in names
        ]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.data if self.open and self.open[-1] == "script" else self.texts).append(data)

    def of(self, tag, style=""):
        """The attributes of every element `tag` that has all the classes `style`, in order."""
        wanted = set(style.split())
        return [
            found for name, found in self.elements if name == tag and wanted <= set((found.get("class") or "").split())
        ]

    @property
    def text(self):
        return "".join(self.texts)
