"""Programs that the launchers call, replaced by ones that write down how they were called."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

# Options of training in which every character matters that a shell could take for its own.
TRAIN = [
    "--gin_file=runs/stage1_220m.gin",
    "--gin.MODEL_DIR='/shared/it is'",
    '--gin.NAME="a$HOME `b` \\"c\\" {d} #e & *"',
]

# What a program is called with goes to $RECORD, as the fields of a line; then $BEHAVIOUR/PROGRAM,
# if there is one, says what else it does.
FAKE = r"""#!/usr/bin/env bash
name="$(basename "$0")"
line="$(printf '%s\x1f' "$name" "$@")"
printf '%s\x1e' "$line" >>"$RECORD"
[[ ! -e "$BEHAVIOUR/$name" ]] || source "$BEHAVIOUR/$name"
"""


@dataclass
class Machine:
    """A PATH on which there is `programs`, a home, and what was called."""

    root: Path

    def __post_init__(self):
        for name in ("bin", "behaviour", "home"):
            (self.root / name).mkdir()

    def fake(self, name: str, behaviour: str = "", where: str = "bin") -> Path:
        program = self.root / where / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(FAKE)
        program.chmod(0o755)
        (self.root / "behaviour" / name).write_text(behaviour)
        return program

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.root / "home"),
            "RECORD": str(self.root / "record"),
            "BEHAVIOUR": str(self.root / "behaviour"),
            "ROOT": str(self.root),
        }

    def run(self, command: Sequence[str], code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            list(command),
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def launch(self, script: str, *options: str, code: int = 0) -> str:
        return self.run([str(LAUNCH / script), *options], code)

    def calls(self, *programs: str) -> list[list[str]]:
        """What was called since the last time, of these programs or of all, in order."""
        record = self.root / "record"
        lines = record.read_text().split("\x1e")[:-1] if record.exists() else []
        record.unlink(missing_ok=True)
        calls = [line.removesuffix("\x1f").split("\x1f") for line in lines]
        return [call for call in calls if not programs or call[0] in programs]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def heredoc(plan: str, opening: str) -> str:
    """The text that a plan hands to the command whose line has `opening` in it."""
    lines = plan.splitlines()
    (start,) = (i for i, line in enumerate(lines) if opening in line and line.endswith("<<'EOF'"))
    return "\n".join(lines[start + 1 : lines.index("EOF", start)]) + "\n"
