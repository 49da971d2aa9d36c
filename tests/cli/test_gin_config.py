"""The seam with gin: what it builds, and what it says about each kind of mistake."""

import importlib
import sys
from pathlib import Path

import pytest

from codet5p_jax.cli import gin_config
from codet5p_jax.cli.errors import ConfigError

LIBRARY = """
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

class Shape(Protocol):
    @property
    def sides(self) -> int: ...
    def area(self) -> float: ...

@dataclass(frozen=True)
class Square:
    side: float
    sides: int = 4
    def area(self) -> float: return self.side**2
    def __post_init__(self):
        if self.side < 0: raise ValueError(f"side {self.side} is negative")

@dataclass(frozen=True)
class Colour:
    name: Literal["red", "blue"] = "red"

def optimizer(rate: float, decay: float | None = None) -> Callable[[int], float]:
    return lambda step: rate

def half(x: float) -> float: return x / 2

def root(shapes: tuple[Shape, ...], rate: Callable[[int], float], name: str, size: int = 3,
         weights: Mapping[str, float] = {}, colour: Colour | None = None,
         transform: Callable[[float], float] | None = None, tags: Sequence[str] = (),
         anything: Any = None, ctx: object = None):
    raise AssertionError("building the arguments must not call the function")
"""
RUN = """
from __gin__ import dynamic_registration
import seam_library as lib

RATE = 0.5
lib.root.shapes = (@big/lib.Square(), @lib.Square())
lib.root.rate = @lib.optimizer()
lib.root.name = %NAME
lib.Square.side = 1
big/lib.Square.side = 10.0
lib.optimizer.rate = %RATE
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    """Imported once: gin refuses a second class of one name."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "seam_library.py").write_text(LIBRARY)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("seam_library")
    sys.path.remove(str(folder))
    del sys.modules["seam_library"]


@pytest.fixture(autouse=True)
def _folder_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run.gin").write_text(RUN)
    monkeypatch.chdir(tmp_path)


def load(library, *bindings: str, files: tuple[str, ...] = ("run.gin",), **kwargs):
    return gin_config.load(library.root, files, bindings, **kwargs)


def mistake(library, *bindings: str, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(library, *bindings, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_builds_what_the_files_say(library):
    config = load(library, "NAME='x'", "lib.root.size=7")
    arguments = config.arguments
    assert arguments["shapes"] == (library.Square(10.0), library.Square(1))
    assert type(arguments["shapes"][0]) is library.Square  # no subclass of gin's making
    assert arguments["rate"](0) == 0.5
    assert arguments["name"] == "x"
    assert arguments["size"] == 7
    assert config.macros == {"RATE": 0.5, "NAME": "x"}
    assert config.unused == ()


def test_operative_text_is_a_gin_file_of_the_same_configuration(library, tmp_path: Path):
    first = load(library, "NAME='x'")
    assert "lib.root.size = 3" in first.text, "defaults belong to it"
    (tmp_path / "operative.gin").write_text(first.text)
    second = load(library, files=("operative.gin",))
    assert second.text == first.text
    assert {k: v for k, v in second.arguments.items() if k != "rate"} == {
        **{"size": 3, "weights": {}, "colour": None, "transform": None, "tags": ()},
        **{"anything": None, "ctx": None},
        **{k: v for k, v in first.arguments.items() if k != "rate"},
    }


def test_later_files_and_command_line_override(library, tmp_path: Path):
    (tmp_path / "mine.gin").write_text("include 'run.gin'\nRATE = 2\nNAME = 'file'\n")
    config = load(library, "RATE=3", files=("mine.gin",))
    assert config.arguments["rate"](0) == 3
    assert config.arguments["name"] == "file"


def test_one_load_leaves_nothing_to_the_next(library):
    load(library, "NAME='x'", "lib.root.size=7")
    assert "size" not in load(library, "NAME='x'").arguments


def test_search_paths_come_before_the_package(library, tmp_path: Path):
    folder = tmp_path / "elsewhere" / "models"
    folder.mkdir(parents=True)
    (folder / "tiny.gin").write_text("NAME = 'mine'\n")
    files = ("run.gin", "models/tiny.gin")
    config = load(library, files=files, search_paths=[str(tmp_path / "elsewhere")])
    assert config.arguments["name"] == "mine"


def test_uncalled_functions_and_containers(library):
    config = load(
        library,
        "NAME='x'",
        "lib.root.transform=@lib.half",
        "lib.root.weights={'a': 1, 'b': 0.5}",
        "lib.root.tags=['p', 'q']",
        "lib.root.colour=@lib.Colour()",
        "lib.root.anything=(@lib.Square(), @lib.half, 3)",
        "lib.root.ctx=@lib.Square()",
    )
    assert config.arguments["transform"](4.0) == 2.0
    assert config.arguments["anything"][::2] == (library.Square(1), 3)
    assert config.arguments["ctx"] == library.Square(1)
    assert config.arguments["weights"] == {"a": 1, "b": 0.5}


def test_unused_bindings_of_files_are_listed(library, tmp_path: Path):
    (tmp_path / "extra.gin").write_text(
        "from __gin__ import dynamic_registration\nimport seam_library as lib\n"
        "NAME = 'x'\nlib.Colour.name = 'blue'\n"
    )
    assert load(library, files=("run.gin", "extra.gin")).unused == ("lib.Colour.name",)


@pytest.mark.parametrize(
    ("binding", "parts"),
    [
        ("lib.root.sizes=1", ["no parameter 'sizes'", "did you mean size?"]),
        ("lib.rot.size=1", ["no 'rot'", "did you mean root?"]),
        ("lib.root.rate=@lib.Nothing", ["command line: 'lib.Nothing': no 'Nothing' in it"]),
        ("lib.size=1", ["'lib' is a module, not a function or a class in it"]),
        ("root.size=1", ["did you mean lib.root?"]),
        ("lip.root.size=1", ["did you mean lib?"]),
        ("RATES=1.0", ["RATES is defined, but nothing refers to it", "did you mean RATE?"]),
        ("lib.root.size=%NONE", ["%NONE, which nothing defines", "--gin.NONE="]),
        ("lib.root.size=%gin.REQUIRED", ["lib.root.size is required"]),
        ("lib.root.size=@lib.Missing()", ["no 'Missing'"]),
        ("lib.root.size='3'", ["lib.root.size must be int, not '3'"]),
        ("lib.root.size=3.5", ["must be int, not 3.5"]),
        ("lib.root.size=True", ["must be int, not True"]),
        ("RATE='fast'", ["lib.optimizer.rate (%RATE) must be float, not 'fast'"]),
        ("lib.root.weights={'a': 'b'}", ["must be Mapping[str, float]"]),
        ("lib.root.tags='pq'", ["must be Sequence[str], not 'pq'"]),
        ("lib.root.shapes=[@lib.Square()]", ["must be tuple[seam_library.Shape, ...]"]),
        ("lib.root.shapes=(@lib.Colour(),)", ["not (@lib.Colour()"]),
        ("lib.root.shapes=(@lib.Square,)", ["not (@lib.Square"]),
        ("lib.root.shapes=(3,)", ["must be tuple[seam_library.Shape, ...], not (3,)"]),
        ("lib.root.rate=@lib.Colour()", ["must be Callable[[int], float]"]),
        ("lib.root.colour=@lib.Square()", ["must be seam_library.Colour | None"]),
        ("lib.root.transform=@lib.half()", ["must be Callable[[float], float] | None"]),
        ("lib.Square.side=-1.0", ["Square", "side -1.0 is negative"]),
        ("lib.Colour.name='red'", ["lib.Colour.name has no effect"]),
        ("bit/lib.Square.side=2.0", ["bit/lib.Square.side has no effect"]),
        ("NAME=/tmp/x", ["not a gin binding", "--gin.NAME=\"'…'\""]),
        ("RATE=%RATE", ["RATE is defined by itself"]),
    ],
)
def test_mistakes_on_the_command_line(library, binding: str, parts: list[str]):
    message = mistake(library, "NAME='x'", binding)
    for part in parts:
        assert part in message
    assert "command line" in message or "Square" in message


def test_literals_are_compared_with_their_type(library):
    message = mistake(library, "NAME='x'", "lib.root.colour=@lib.Colour()", "lib.Colour.name='rad'")
    assert "must be Literal['red', 'blue'], not 'rad'" in message


def test_undefined_macro_and_missing_argument(library, tmp_path: Path):
    assert "run.gin:8: lib.root.name refers to %NAME" in mistake(library)
    (tmp_path / "run.gin").write_text(RUN.replace("lib.root.name = %NAME\n", ""))
    assert "seam_library.root.name is required, but not set" in mistake(library)


def test_placeholders_stand_in_for_undefined_macros_only(library):
    placeholders = {"NAME": "(name)", "RATE": 9.0, "OTHER": 1}
    config = load(library, placeholders=placeholders)
    assert config.arguments["name"] == "(name)"
    assert config.arguments["rate"](0) == 0.5
    assert load(library, "NAME='x'", placeholders=placeholders).arguments["name"] == "x"


def test_mistakes_in_files_name_the_line(library, tmp_path: Path):
    def with_line(line: str) -> str:
        (tmp_path / "run.gin").write_text(RUN + line)
        return mistake(library, "NAME='x'")

    assert with_line("lib.root.size = 'a'").startswith("run.gin:12: lib.root.size must be int")
    assert with_line("lib.root.siez = 1").startswith("run.gin:12: lib.root has no parameter")
    assert with_line("lib.root.size = = 1").startswith("run.gin:12: ")
    assert with_line("lib.root.rate = @lib.None_()").startswith("run.gin:12: 'lib.None_': no 'No")
    assert with_line("import missing_module").startswith("run.gin:12: import missing_module: No mo")
    assert with_line("include 'none.gin'").startswith("run.gin:12: no gin file 'none.gin'")
    end = "opens here and is not closed before the end of the file"
    assert with_line("lib.root.tags = ['p',\n  'q'") == f"run.gin:12: [ {end}"
    assert with_line("lib.root.weights = {\n  'a': [1],\n") == f"run.gin:12: {{ {end}"
    assert with_line("lib.root.tags = (\n('a', (\n'b')\n") == f"run.gin:13: ( {end}"
    assert with_line('lib.root.tags = ["p",\n"""q\n') == f"run.gin:13: a string {end}"
    assert with_line("include 'run.gin'") == f"run.gin includes itself, through {Path('run.gin')}"


def test_missing_file_suggests_the_nearest(library):
    message = mistake(library, files=("models/220.gin",))
    assert "no gin file 'models/220.gin'" in message
    assert "did you mean models/220m.gin?" in message


def test_file_without_dynamic_registration(library, tmp_path: Path):
    (tmp_path / "old.gin").write_text("import seam_library\n")
    message = mistake(library, files=("old.gin",))
    assert message == "old.gin:1: the file must begin: from __gin__ import dynamic_registration"


def test_types_matter_where_a_value_is_used(library, tmp_path: Path):
    """A later file replaces what the macro was for, and means something else by it."""
    (tmp_path / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport seam_library as lib\n"
        "include 'run.gin'\nlib.root.rate = @lib.half\nRATE = None\n"
        "lib.root.size = %SIZE\nSIZE = 3\n"
    )
    config = load(library, "NAME='x'", files=("mine.gin",))
    assert config.unused == ("lib.optimizer.rate",)
    assert config.arguments["rate"](3) == 1.5
    used = mistake(library, "NAME='x'", "SIZE=None", files=("mine.gin",))
    assert "lib.root.size (%SIZE) must be int, not None" in used
