"""Instructions out of files: forms of records, templates, splits, what is malformed."""

import gzip
import json

import pytest

from codet5p_jax.data.corpora.instructions import Templates, instruction_files, instructions
from codet5p_jax.data.corpora.malformed import Malformed, TooManyMalformedError

ROWS = [
    {"instruction": "Add two numbers.", "input": "1 2", "output": "3"},
    {"instruction": "Say {hello}.", "input": "", "output": "hello\n"},
]
PROMPTS = [
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd two numbers.\n\n### Input:\n1 2\n\n### Response:",
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nSay {hello}.\n\n### Response:",
]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def read(folder, split="train", **options):
    return list(instructions(folder, split, held_out=0.0, **options))


def pairs(records):
    return [(record["prompt"], record["response"]) for record in records]


@pytest.mark.parametrize("name", ["code_alpaca_20k.json", "a.json", "a.jsonl", "a.jsonl.gz"])
def test_forms_of_files(tmp_path, name):
    text = json.dumps(ROWS, indent=2) if "alpaca" in name else lines(ROWS)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = read(tmp_path)
    assert pairs(found) == list(zip(PROMPTS, ["3", "hello\n"], strict=True))
    place = "row 1" if "alpaca" in name else "2"
    assert found[1]["place"] == f"{tmp_path / name}:{place}"


def test_an_input_may_be_missing(tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": None, "output": "c"}]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    alone = Templates().prompt("a")
    assert pairs(read(tmp_path)) == [(alone, "b"), (alone, "c")]


def test_chats(tmp_path):
    rows = [
        chat(("user", "one"), ("assistant", "1")),
        chat(
            *[("system", "Count."), ("user", "one"), ("assistant", "1"), ("user", "two")],
            *[("assistant", "2"), ("user", "three"), ("assistant", "3"), ("user", "left out")],
        ),
    ]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    head = Templates().without_input.partition("###")[0]
    assert pairs(read(tmp_path)) == [
        (head + "### Instruction:\none\n\n### Response:", "1"),
        (
            head + "### Instruction:\nCount.\n\none\n\n### Response:1\n\n"
            "### Instruction:\ntwo\n\n### Response:2\n\n"
            "### Instruction:\nthree\n\n### Response:",
            "3",
        ),
    ]
    templates = Templates(
        without_input="{instruction}>", next_turn="{instruction}|{response}{next}"
    )
    found = pairs(read(tmp_path, templates=templates))
    assert found == [("one>", "1"), ("Count.\n\none|1two|2three>", "3")]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "expected a JSON object, got str"),
        ({"instruction": "a"}, "expected field 'output' of type str, got nothing"),
        ({"instruction": 1, "output": ""}, "expected field 'instruction' of type str, got int"),
        (
            {"instruction": "", "input": 0, "output": ""},
            "expected field 'input' of type str, got int",
        ),
        ({"messages": "hello"}, "expected field 'messages' of type list, got str"),
        ({"messages": [{"role": "user"}]}, "message 0: expected field 'content' of type str"),
        ({"messages": []}, "expected messages of user and assistant in turn.* got no messages"),
        (chat(("user", "a")), "in turn, at most one of system before them, got user"),
        (chat(("assistant", "a")), "got assistant"),
        (chat(("user", "a"), ("user", "b"), ("assistant", "c")), "got user, user, assistant"),
        (
            chat(("user", "a"), ("tool", "b"), ("assistant", "c")),
            "got user, tool, assistant",
        ),
        ({"instruction": "\ud800", "output": ""}, "surrogates not allowed"),
    ],
)
@pytest.mark.parametrize("form", ["list", "lines"])
def test_malformed_records_are_named(tmp_path, record, reason, form):
    rows = [ROWS[0], record]
    file = tmp_path / ("a.json" if form == "list" else "a.jsonl")
    file.write_text(json.dumps(rows) if form == "list" else lines(rows))
    place = f"{file}:{'row 1' if form == 'list' else '2'}"
    with pytest.raises(TooManyMalformedError, match=f"1 of 2 records.*\n  {place}: .*{reason}"):
        read(tmp_path)
    malformed = Malformed(max_malformed_share=1.0)
    assert len(read(tmp_path, malformed=malformed)) == malformed.count == 1


def test_files_that_are_no_lists(tmp_path):
    (tmp_path / "a.json").write_text('[{"instruction": "a",\n ')
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON list: .* line 2 column 2"):
        read(tmp_path)


def test_splits_by_name(tmp_path):
    for name in ("code.json", "chats_dev.jsonl", "validation.jsonl.gz", "unit-test.json", "x.txt"):
        (tmp_path / name).touch()
    files = instruction_files(tmp_path)
    assert {split: [f.name for f in found] for split, found in files.items()} == {
        "train": ["code.json"],
        "validation": ["chats_dev.jsonl", "validation.jsonl.gz"],
    }
    (tmp_path / "code.json").write_text(lines(ROWS[:1]))
    (tmp_path / "chats_dev.jsonl").write_text(lines(ROWS[1:]))
    with gzip.open(tmp_path / "validation.jsonl.gz", "wt") as file:
        file.write(lines(ROWS[:1]))
    assert [p for p, _ in pairs(read(tmp_path, "validation"))] == PROMPTS[::-1]
    assert [p for p, _ in pairs(read(tmp_path))] == PROMPTS[:1]
    (tmp_path / "code.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dir: found no \*.json or \*.jsonl to train on"):
        instructions(tmp_path, "train", setting="dir")
    with pytest.raises(ValueError, match="expected a split among train, validation, got 'test'"):
        instructions(tmp_path, "test")


def test_a_share_is_held_out_by_content(tmp_path):
    rows = [{"instruction": f"do {i}", "input": "", "output": str(i)} for i in range(300)]
    again = [{**row, "output": "another way"} for row in rows]
    (tmp_path / "a.json").write_text(json.dumps(rows + again))

    def split(name, templates=None):
        found = instructions(tmp_path, name, held_out=0.2, templates=templates)
        return [r["prompt"].split("\n")[-3] for r in found]

    train, held_out = split("train"), split("validation")
    assert 0.15 < len(held_out) / 600 < 0.25
    assert sorted(train + held_out) == sorted(2 * [row["instruction"] for row in rows])
    assert not set(train) & set(held_out)
    (tmp_path / "a.json").write_text(json.dumps((rows + again)[::-1]))
    assert split("validation") == held_out[::-1]
    with pytest.raises(
        ValueError, match="in split 'validation', found none: its share of 600 is 0;"
    ):
        list(instructions(tmp_path, "validation", held_out=0.0))
    other = Templates(without_input="Do.\n\n{instruction}\n\nNow:")
    assert split("validation", other) == held_out[::-1]


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{instruction", "expected '}' before end of string"),
        ("no field", "got 'no field'"),
        ("{instruction}{input}", "got '{instruction}{input}'"),
        ("{instruction!r}", "got '{instruction!r}'"),
        ("{instruction:>9}", "got '{instruction:>9}'"),
        ("{instruction.x}", "got"),
    ],
)
def test_templates_that_cannot_be_filled_in(tmp_path, template, found):
    with pytest.raises(ValueError, match=r"with the fields {instruction}") as raised:
        Templates(without_input=template)
    assert found in str(raised.value)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"without_input": template}))
    with pytest.raises(ValueError, match=rf"instruct_templates: expected in {file} a JSON object"):
        Templates.from_file(file)


def test_templates_of_a_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"without_input": "{{{instruction}}} "}')
    templates = Templates.from_file(file)
    assert templates.prompt("a{b}") == "{a{b}} "
    assert templates.prompt("Add two numbers.", "1 2") == PROMPTS[0]
    for wrong in ('{"without": ""}', "[]", "{", "3", '{"next_turn": 3}'):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="with_input, without_input, next_turn; "):
            Templates.from_file(file)
