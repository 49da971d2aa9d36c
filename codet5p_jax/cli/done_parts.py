"""A run of several parts that goes on where it stopped, and what each part took."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codet5p_jax.files import write_text


class DoneParts:
    """Which parts of a run are done, what they found and what they took; kept in a file.

    What an interrupted part took counts as well, unless it was killed before it could say.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self._path = path
        self._state: dict[str, Any] = {"identity": identity, "parts": {}, "begun": {}}
        if path.exists():
            self._state |= json.loads(path.read_text(encoding="utf-8"))
        if self._state["identity"] != identity:
            raise ValueError(
                f"{path.parent} holds a quickstart with {self._state['identity']}, asked for is "
                f"{identity}; set --output_dir to another folder"
            )

    def do(self, name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs a part unless it is done, and returns what it found."""
        parts, begun = self._state["parts"], self._state["begun"]
        if name in parts:
            print("      done before", flush=True)
            return parts[name]["found"]
        entry = begun.setdefault(name, {"seconds": 0.0, "partial": False})
        earlier = dict(entry)
        entry["partial"] = True  # unless this try lives to say what it took
        write_json(self._path, self._state)
        start = time.monotonic()
        try:
            found = part()
        except BaseException:
            seconds = earlier["seconds"] + time.monotonic() - start
            begun[name] = {**earlier, "seconds": seconds}
            write_json(self._path, self._state)
            raise
        seconds = earlier["seconds"] + time.monotonic() - start
        parts[name] = {
            **{"seconds": seconds, "partial": earlier["partial"]},
            **{"peak_memory_gb": _peak_memory(), "found": found},
        }
        del begun[name]
        write_json(self._path, self._state)
        print(f"      {seconds:.1f} s", flush=True)
        return found

    def costs(self) -> dict[str, Any]:
        """`seconds` by part and in total, and `peak_memory_gb` of the largest process.

        `seconds_partial` lists the parts that were killed once and took longer than is known.
        """
        parts = self._state["parts"]
        seconds = {name: round(part["seconds"], 2) for name, part in parts.items()}
        return {
            "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
            "seconds_partial": [name for name, part in parts.items() if part.get("partial")],
            "peak_memory_gb": max(part["peak_memory_gb"] for part in parts.values()),
        }


def write_json(path: Path, value: Any) -> None:
    """Writes a file that people may read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _peak_memory() -> float:
    """GB that the largest process so far held at once: this one, or one it has waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    largest = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(largest * unit / 1e9, 3)
