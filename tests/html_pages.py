"""What a browser would make of a page, and a text that tries to become one."""

from html.parser import HTMLParser

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>'\"{{ 7*7 }}"


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data
