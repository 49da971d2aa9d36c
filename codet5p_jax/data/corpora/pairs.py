"""Which text-code pairs are fit to learn from (the filter of CodeXGLUE's code-to-text data)."""

import re
from dataclasses import dataclass

_MARKUP = re.compile(r"<img|https?:", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")  # of a docstring that spells one; not encodable
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class PairFilter:
    """Filter on the text of a pair; code only has to be there.

    CodeXGLUE also asks for code that parses and text in English. Python functions are parsed by
    their readers; other languages are not parsed. English is approximated by `min_ascii`.

    Attributes:
      min_words, max_words: of the text, punctuation marks counted as words.
      min_ascii: smallest share of ASCII characters in the text.
      drop_markup: whether texts with `<img` or a web address are left out.
    """

    min_words: int = 3
    max_words: int = 256
    min_ascii: float = 0.9
    drop_markup: bool = True

    def keeps(self, text: str, code: str) -> bool:
        """Whether the pair passes."""
        if not text or not code.strip() or _SURROGATE.search(text):
            return False
        if not self.min_words <= len(_WORD.findall(text)) <= self.max_words:
            return False
        if sum(map(str.isascii, text)) < self.min_ascii * len(text):
            return False
        return not (self.drop_markup and _MARKUP.search(text))
