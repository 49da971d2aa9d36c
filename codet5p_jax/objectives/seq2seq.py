"""Any plain sequence-to-sequence task: the inputs and targets that its own preprocessors left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from codet5p_jax.data.tokens import SpecialTokens
from codet5p_jax.objectives.base import Features
from codet5p_jax.objectives.rows import as_tokens
from codet5p_jax.objectives.teacher_forcing import TeacherForced


@dataclass(frozen=True, kw_only=True)
class Seq2Seq(TeacherForced):
    """Teacher forcing on `inputs` and `targets` as they are.

    No special token is added: whether targets end with `</s>` is the task's business. What does not
    fit is cut from the end, as SeqIO's feature converters do.

    Attributes:
      inputs_length, targets_length: S and T; T5's defaults.
      prompt_to_decoder: the decoder reads the inputs as well, without an `</s>` at their end; the
        loss is on the targets only, and T covers both, whatever S cuts for the encoder. As the
        model's field of that name. Where an example has `inputs_and_targets`, both tokenised as one
        text, the decoder reads these instead; the first len(inputs) of them are no targets.
      keep_eos: what is cut and ends with `</s>` keeps it, inputs and targets, as where the
        tokenizer of CodeT5's tuning scripts cuts. Not with `prompt_to_decoder`.
    """

    inputs_length: int = 512
    targets_length: int = 512
    prompt_to_decoder: bool = False
    keep_eos: bool = False

    name: ClassVar[str] = "seq2seq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_eos and self.prompt_to_decoder:
            raise ValueError(
                f"{self.name}: keep_eos is for targets alone in the decoder; set it or "
                "prompt_to_decoder to False"
            )

    def features(
        self, example: Mapping[str, np.ndarray], rng: np.random.Generator, special: SpecialTokens
    ) -> Features:
        """`inputs` and `targets` int32 [n], [m] -> the teacher-forced row."""
        del rng
        inputs, targets, prompt = self._parts(example, special)
        if self.keep_eos:
            inputs = _cut(inputs, self.inputs_length, special)
            targets = _cut(targets, self.targets_length, special)
        return self.row(inputs, targets, special, prompt)

    def cut(self, example: Mapping[str, np.ndarray], special: SpecialTokens) -> dict[str, bool]:
        """Whether `inputs` (of the encoder) and `targets` lose something to S and T, and whether
        there is `no loss`, as nothing is left of the targets."""
        inputs, targets, prompt = self._parts(example, special)
        room = max(self.targets_length - (0 if prompt is None else len(prompt)), 0)
        return {
            "inputs": len(inputs) > self.inputs_length,
            "targets": len(targets) > room,
            "no loss": min(len(targets), room) == 0,
        }

    def _parts(
        self, example: Mapping[str, np.ndarray], special: SpecialTokens
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Inputs, targets and the prompt in the decoder, uncut."""
        inputs, targets = as_tokens(example["inputs"]), as_tokens(example["targets"])
        if not self.prompt_to_decoder:
            return inputs, targets, None
        if "inputs_and_targets" in example:
            prompt, targets = np.split(as_tokens(example["inputs_and_targets"]), [len(inputs)])
            return inputs, targets, prompt
        closed = len(inputs) > 0 and inputs[-1] == special.eos
        return inputs, targets, inputs[:-1] if closed else inputs


def _cut(tokens: np.ndarray, length: int, special: SpecialTokens) -> np.ndarray:
    """At most `length` ids, the last of them `</s>` if it was."""
    if len(tokens) > length and tokens[-1] == special.eos:
        return np.append(tokens[: length - 1], tokens[-1])
    return tokens[:length]
