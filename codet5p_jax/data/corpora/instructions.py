"""Instructions with responses: Code Alpaca's list, JSON lines of the same, and chats."""

import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codet5p_jax.data.corpora.files import require_files, require_folder, split_of
from codet5p_jax.data.corpora.jsonl import check_fields, read_json_list, read_jsonl
from codet5p_jax.data.corpora.malformed import Malformed

SPLITS = ("train", "validation")
_SPLIT_OF_WORD = {
    **{word: "validation" for word in ("validation", "valid", "val", "dev")},
    "test": "test",  # not read
}
_SUFFIXES = (".json", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Templates:
    """How a prompt is written; by default as InstructCodeT5+ was tuned (Alpaca's two).

    Attributes:
      with_input, without_input: the prompt of an `instruction`, with an `input` or where that is
        empty. What is generated follows immediately.
      next_turn: of a chat: an instruction with the `response` it had and the `next` instruction, as
        one instruction.

    Raises:
      ValueError: a template has other fields, or none that can be filled in.
    """

    with_input: str = (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    )
    without_input: str = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    )
    next_turn: str = "{instruction}\n\n### Response:{response}\n\n### Instruction:\n{next}"

    def __post_init__(self) -> None:
        _check_template("with_input", self.with_input, {"instruction", "input"})
        _check_template("without_input", self.without_input, {"instruction"})
        _check_template("next_turn", self.next_turn, {"instruction", "response", "next"})

    @classmethod
    def from_file(cls, path: str | Path) -> "Templates":
        """Reads a JSON object with some of the fields; the others keep their defaults.

        Raises:
          ValueError: it is none, or a template cannot be used; names the file.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            check_fields(fields, dict.fromkeys(fields, str))
            return cls(**fields)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"instruct_templates: expected in {path} a JSON object with fields among "
                f"{', '.join(asdict(cls()))}; {error}"
            ) from error

    def prompt(self, instruction: str, input: str = "") -> str:
        """The prompt of an instruction.

        >>> Templates(without_input="Do: {instruction}").prompt("sort")
        'Do: sort'
        """
        if input:
            return self.with_input.format(instruction=instruction, input=input)
        return self.without_input.format(instruction=instruction)


def instruction_files(folder: str | Path, setting: str = "folder") -> dict[str, list[Path]]:
    """Files of each split in `folder`, sorted; no file to train on is an error.

    A file belongs to the split that its name ends in (`validation`, `valid`, `val` or `dev`, as in
    `chats_dev.jsonl`), else to `train`; files that end in `test` are in neither.
    """
    root = require_folder(folder, setting)
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(root.iterdir()):
        if path.is_file() and path.name.endswith(_SUFFIXES):
            word = re.split(r"[-_.]", path.name.partition(".json")[0].lower())[-1]
            files.get(_SPLIT_OF_WORD.get(word, "train"), []).append(path)
    require_files(files["train"], f"*.json or *.jsonl to train on in {root}", setting)
    return files


def instructions(
    folder: str | Path,
    split: str,
    *,
    templates: Templates | None = None,
    held_out: float = 0.01,
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Prompts and responses of one split: `prompt`, `response`, `place`.

    Records are `{"instruction", "input", "output"}`, where `input` may be empty, null or missing,
    or `{"messages": [{"role", "content"}, …]}`. Of a chat the last turn of the assistant is the
    response, and all before it makes the prompt: `next_turn` joins earlier turns to one
    instruction, and what the system says stands before the first turn of the user, a blank line
    between them. Turns after the response are left out.

    Args:
      folder: holds `*.json` (one list of records, as Code Alpaca, or JSON lines) or `*.jsonl`
        (`.jsonl.gz` too); see `instruction_files` for splits.
      split: "train" or "validation".
      templates: of prompts; by default `Templates()`.
      held_out: where no file is for validation, the share of records that is, chosen by a hash of
        the first instruction and its input: records that share these are in one split.
      malformed: counts and reports records of another form.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if there is no such folder or no file to train on.
      ValueError: while reading, if a `.json` file is no list of JSON; at the end, if `held_out`
        leaves nothing for the split.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    files = instruction_files(folder, setting)
    templates, malformed = templates or Templates(), malformed or Malformed()
    if files["validation"]:
        return _records(files[split], templates, None, split, malformed)
    shares = {"train": 1 - held_out, "validation": held_out}
    return _records(files["train"], templates, shares, split, malformed)


def _records(
    files: list[Path],
    templates: Templates,
    shares: Mapping[str, float] | None,
    split: str,
    malformed: Malformed,
) -> Iterator[dict[str, str]]:
    found = 0
    for path in files:
        read = read_json_list if _is_list(path) else read_jsonl
        for record in read(path, malformed=malformed):
            try:
                key, prompt, response = _example(record, templates)
            except ValueError as error:
                malformed.reject(record["place"], error)
                continue
            if shares is None or split_of(key, shares) == split:
                found += 1
                yield {"prompt": prompt, "response": response, "place": record["place"]}
    malformed.judge()
    if shares is not None and not found:
        raise ValueError(
            f"expected instructions in split {split!r}, found none: its share of {malformed.seen} "
            f"is {shares[split]:g}; change held_out (--instruct_held_out), add a file for "
            "validation, or leave the split out (--splits=train)"
        )


def _is_list(path: Path) -> bool:
    """Whether a file begins as a JSON list; some call JSON lines `.json`."""
    if not path.name.endswith(".json"):
        return False
    with open(path, "rb") as file:
        return file.read(1024).lstrip()[:1] == b"["


def _example(record: Mapping[str, Any], templates: Templates) -> tuple[str, str, str]:
    """What decides the split, prompt, response."""
    if "messages" in record:
        return _chat(record["messages"], templates)
    check_fields(record, {"instruction": str, "output": str})
    given = record.get("input")
    if given is None:
        given = ""
    check_fields({"input": given}, {"input": str})
    prompt = templates.prompt(record["instruction"], given)
    return f"{record['instruction']}\0{given}", prompt, record["output"]


def _chat(messages: Any, templates: Templates) -> tuple[str, str, str]:
    """As `_example`."""
    turns = _turns(messages)
    system = turns.pop(0)[1] if turns[:1] and turns[0][0] == "system" else None
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    roles = [role for role, _ in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        found = ", ".join(role for role, _ in _turns(messages)) or "no messages"
        raise ValueError(
            "expected messages of user and assistant in turn, at most one of system before them, "
            f"got {found}"
        )
    first = turns[0][1]
    instruction = first if system is None else f"{system}\n\n{first}"
    for (_, response), (_, following) in zip(turns[1:-1:2], turns[2::2], strict=True):
        instruction = templates.next_turn.format(
            instruction=instruction, response=response, next=following
        )
    return f"{first}\0", templates.prompt(instruction), turns[-1][1]


def _turns(messages: Any) -> list[tuple[str, str]]:
    """(role, content) of each message."""
    if not isinstance(messages, list):
        raise ValueError(f"expected field 'messages' of type list, got {type(messages).__name__}")
    for number, message in enumerate(messages):
        try:
            check_fields(message, {"role": str, "content": str})
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return [(message["role"], message["content"]) for message in messages]


def _check_template(name: str, template: str, wanted: set[str]) -> None:
    expected = f"expected {name} with the fields " + ", ".join(f"{{{w}}}" for w in sorted(wanted))
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{expected}: {error}; a brace of the text is written twice") from None
    # A field has a name, and neither format nor conversion.
    if {field for field, *_ in parts} != wanted or any(spec or sign for _, spec, sign in parts):
        raise ValueError(f"{expected}, got {template!r}; a brace of the text is written twice")
