"""HumanEval-X in the languages whose tools are here: solutions pass, and nothing else does."""

import gzip
import json
from pathlib import Path

import pytest

from codet5p_jax.evaluation import humaneval_x
from codet5p_jax.evaluation.programs import Verdict
from codet5p_jax.evaluation.sandbox.pool import LayerMissing, Sandbox, run_programs

DATA = Path(__file__).parents[2] / "../shared/data/humaneval_x"
FILES = {"Python": "python", "CPP": "cpp", "Java": "java", "JavaScript": "js", "Rust": "rust"}
# Problems whose solutions need what is no part of the language, or fail in the data itself.
ELSEWHERE = {
    "Rust": {38, 50, 53, 91, 162},  # crates
    "CPP": {22, 137, 162},  # Boost, OpenSSL
    "JavaScript": {112, 155, 162},  # two fail by themselves, one wants js-md5
    "Java": set(),
    "Python": set(),
}
LANGUAGES = [language for language in FILES if language not in humaneval_x.missing_tools()]

# Prints what may be a word told to the program alone, wherever that is.
SEARCH = "(cat; grep -ahorE [0-9a-f]{64} /tmp) | tr -d [:space:]"
# A problem in the form of each language: prompt, test; solutions that are right, wrong, that leave
# before the test, and that search for what tells a pass first.
TINY = {
    "Python": (
        "def add(a, b):\n",
        "def check(add):\n    assert add(1, 2) == 3\n\ncheck(add)",
        "    return a + b\n",
        "    return a - b\n",
        "    import os; print('passed'); os._exit(0)\n",
        "    import os\n    for i in range(99):\n        try: os.write(i, os.read(i, 99))\n"
        "        except OSError: pass\n    os._exit(0)\n",
    ),
    "CPP": (
        "using namespace std;\nint add(int a, int b){\n",
        "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (add(1, 2) == 3);\n}\n",
        "    return a + b;\n}\n",
        "    return a - b;\n}\n",
        '    printf("passed"); exit(0);\n}\n',
        f'    system("{SEARCH}"); exit(0);\n}}\n',
    ),
    "Java": (
        "import java.util.*;\nclass Solution {\n    public int add(int a, int b) {\n",
        "public class Main {\n    public static void main(String[] args) {\n"
        "        if (new Solution().add(1, 2) != 3) throw new AssertionError();\n    }\n}\n",
        "        return a + b;\n    }\n}",
        "        return a - b;\n    }\n}",
        '        System.out.print("passed"); System.exit(0); return 0;\n    }\n}',
        f'        try {{ new ProcessBuilder("/bin/sh", "-c", "{SEARCH}").inheritIO()'
        ".start().waitFor(); } catch (Exception e) {} System.exit(0); return 0;\n    }\n}",
    ),
    "JavaScript": (
        "const add = (a, b) => {\n",
        "const testAdd = () => {\n  console.assert(add(1, 2) === 3)\n}\n\ntestAdd()\n",
        "  return a + b;\n}\n",
        "  return a - b;\n}\n",
        "  process.exit(0);\n}\n",
        f"  const [s, io] = ['{SEARCH}', {{ stdio: 'inherit' }}];\n"
        "  require('child_process').spawnSync('/bin/sh', ['-c', s], io); process.exit(0);\n}\n",
    ),
    "Rust": (
        "fn add(a: i32, b: i32) -> i32 {\n",
        "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn test_add() {\n"
        "        assert_eq!(add(1, 2), 3);\n    }\n}\n",
        "    a + b\n}\n",
        "    a - b\n}\n",
        '    println!("test zz::reached ... ok"); std::process::exit(0);\n}\n',
        f'    std::process::Command::new("/bin/sh").args(["-c", "{SEARCH}"]).status().unwrap();\n'
        "    std::process::exit(0);\n}\n",
    ),
}


def verdicts(problems: list[dict], completions: list[str]) -> list[Verdict]:
    checks = [
        humaneval_x.check(problem, completion)
        for problem, completion in zip(problems, completions, strict=True)
    ]
    python = humaneval_x.language_of(problems[0]) == "Python"
    outcomes = run_programs(
        (program for program, _ in checks),
        packages=humaneval_x.PYTHON_PACKAGES if python else (),
        readable=humaneval_x.readable(),
    )
    return [judge(outcome) for (_, judge), outcome in zip(checks, outcomes, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def _a_sandbox():
    try:
        Sandbox().close()
    except LayerMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("language", LANGUAGES)
def test_right_wrong_and_gone(language):
    prompt, test, *completions = TINY[language]
    problem = {"task_id": f"{language}/0", "prompt": prompt, "test": test, "declaration": "\n"}
    right, wrong, gone, searched = verdicts([problem] * 4, completions)
    assert right == Verdict(True, "passed")
    assert not wrong.passed
    assert wrong.result.startswith("failed: ")
    assert not gone.passed
    assert not searched.passed


def solutions(language: str, every: int) -> None:
    path = DATA / f"humaneval_{FILES[language]}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    lines = gzip.decompress(path.read_bytes()).splitlines()
    problems = [json.loads(line) for i, line in enumerate(lines) if i not in ELSEWHERE[language]][
        ::every
    ]
    found = verdicts(problems, [problem["canonical_solution"] for problem in problems])
    failed = [
        p["task_id"] for p, verdict in zip(problems, found, strict=True) if not verdict.passed
    ]
    assert not failed


@pytest.mark.parametrize("language", LANGUAGES)
def test_some_solutions_pass(language):
    solutions(language, every=80)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_solutions_pass(language):
    solutions(language, every=1)


def test_a_language_without_its_tools_is_said_to_be():
    missing = humaneval_x.missing_tools()
    assert "Go" in missing
    problem = {"task_id": "Go/0", "prompt": "", "test": "", "declaration": ""}
    with pytest.raises(ValueError, match=r"Go/0: Go cannot be run here: .*go"):
        humaneval_x.check(problem, "")
    with pytest.raises(ValueError, match="not a language"):
        humaneval_x.check({**problem, "task_id": "Perl/0"}, "")
