"""The nine languages of CodeT5+'s first stage: names, file suffixes, sizes (paper §4)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
      key: in task names, and CodeSearchNet's folder name where that has the language.
      name: in github-code's `language` column (compared without regard to case).
      suffixes: of files, as github-code assigns them.
      files: github-code files the paper trained on.
      pairs: CodeSearchNet text-code pairs the paper trained on; 0: not in CodeSearchNet.
    """

    key: str
    name: str
    suffixes: tuple[str, ...]
    files: int
    pairs: int


LANGUAGES = (
    Language("ruby", "Ruby", (".rb",), 2_119_741, 49_009),
    Language("javascript", "JavaScript", (".js",), 5_856_984, 125_166),
    Language("go", "GO", (".go",), 1_501_673, 319_132),
    Language("python", "Python", (".py",), 3_418_376, 453_772),
    Language("java", "Java", (".java",), 10_851_759, 457_381),
    Language(
        "php", "PHP", (".php", ".php3", ".php4", ".php5", ".phps", ".phpt"), 4_386_876, 525_357
    ),
    Language("c", "C", (".c", ".h"), 4_187_467, 0),
    Language(
        "cpp", "C++", (".cpp", ".hpp", ".c++", ".h++", ".cc", ".hh", ".C", ".H"), 2_951_945, 0
    ),
    Language("csharp", "C#", (".cs",), 4_119_796, 0),
)
BY_KEY = {language.key: language for language in LANGUAGES}
BY_SUFFIX = {suffix: language for language in LANGUAGES for suffix in language.suffixes}
