"""What every gin file of a run comes to, next to what the paper states.

`chosen` marks what the paper leaves open (or, in the quickstart, what is not the paper's at all);
everything else is from the paper's §3, §4 and §B. Rows of a mixture's objectives are those of the
tasks' own tests.
"""

import dataclasses
import fnmatch
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from codet5p_jax.cli import gin_config, gin_static
from codet5p_jax.models.codet5p import CodeT5p
from codet5p_jax.models.params import flatten
from codet5p_jax.training.train import train

MACROS = ("MODEL_DIR='run'", "CACHE_DIR='cache'", "INITIAL_CHECKPOINT_PATH='stage1'")
FIELDS = {  # of objectives, besides their lengths
    "span_denoising": ("noise_density", "min_span_words", "max_span_words", "max_spans"),
    "seq2seq_clm": ("min_pivot", "max_pivot"),
    "text_code_pairs": ("momentum", "queue_size", "alpha", "matching", "matching_rows"),
}
LENGTHS = ("inputs_length", "targets_length", "text_length", "code_length", "length")


class Chosen(NamedTuple):
    """A value that the paper does not state."""

    value: Any


chosen = Chosen
ADAMW = {
    "optimizer": "AdamW",
    "weight_decay": 0.1,
    "betas": chosen((0.9, 0.999)),
    "clip_norm": chosen(1.0),
}
SCHEDULE = {
    "schedule": "Linear",
    "initial": chosen(0.0),
    "final": chosen(0.0),
    "warmup_steps": chosen(1_000),
}
PAPER = {**ADAMW, **SCHEDULE, "dropout": 0.1, "loss_weights": 1}

STAGE1 = {
    **PAPER,
    "phases": (
        ("codet5p_stage1_denoise", 10_000, 2048),
        # The paper states each batch; that a step takes all three of them is chosen.
        ("codet5p_stage1", 100_000, 2048 + 512 + 512),
    ),
    "peak": 2e-4,
    "span_denoising": {
        "inputs_length": 512,
        "targets_length": chosen(256),
        "noise_density": 0.15,
        "min_span_words": 1,
        "max_span_words": 5,
        "max_spans": chosen(100),
    },
    "seq2seq_clm": {
        "inputs_length": 768,
        "targets_length": 600,
        "min_pivot": 0.1,
        "max_pivot": 0.9,
    },
    "decoder_clm": {"inputs_length": 1, "targets_length": 1024},
    "accumulate": chosen(8),
}
STAGE2 = {
    **PAPER,
    # 10 epochs of 1,929,817 pairs, 256 of each objective a step.
    "phases": (("codet5p_stage2", 75_384, 3 * 256),),
    "peak": 1e-4,
    "text_code_pairs": {
        "text_length": 128,
        "code_length": 420,
        "momentum": chosen(0.995),
        "queue_size": chosen(57_600),
        "alpha": 0.0,  # one-hot targets
        "matching": True,
        "matching_rows": None,
    },
    "text_to_code": {"inputs_length": 128, "targets_length": 420},
    "code_to_text": {"inputs_length": 420, "targets_length": 128},
    "accumulate": chosen(1),
}
QUICKSTART = {
    "optimizer": chosen("RmsScaledAdamW"),
    "weight_decay": chosen(0.0),
    "betas": chosen((0.9, 0.999)),
    "clip_norm": chosen(1.0),
    "schedule": "Linear",
    "initial": chosen(0.0),
    "final": chosen(0.0),
    "warmup_steps": chosen(30),
    "dropout": chosen(0.0),
    "loss_weights": 1,
    "accumulate": chosen(1),
}
TINY_ADAMW = {"optimizer": chosen("AdamW"), "peak": chosen(2e-3)}
# Fine-tuning: CodeT5+ states lengths, peak, batch and epochs, or else CodeT5 states all of it.
CODET5 = {
    "optimizer": "AdamW",
    "weight_decay": 0.0,
    "betas": chosen((0.9, 0.999)),
    "clip_norm": chosen(1.0),
    "schedule": "Linear",
    "initial": 0.0,
    "final": 0.0,
    "warmup_steps": 1_000,
    "dropout": 0.1,
    "loss_weights": 1,
    "accumulate": 1,
}
CODET5P = {**CODET5, "weight_decay": chosen(0.0), "warmup_steps": chosen(1_000), "peak": 2e-5}


NEVER = chosen(None)


def best_of(metric: str, patience: Any = NEVER) -> dict[str, Any]:
    """Which evaluation is the best is chosen; where CodeT5 states a patience, it is that."""
    return {"early_stopping": (chosen(metric), patience)}


def best_written(metric: str, patience: Any, rows: int = 5_000) -> dict[str, Any]:
    """By what is written: the figures and the most rows are those of CodeT5's script."""
    return {"early_stopping": (metric, patience), "generated_rows": rows}


def seq2seq(inputs: int, targets: int) -> dict[str, Any]:
    return {"seq2seq": {"inputs_length": inputs, "targets_length": targets}}


def pairs_of(task: str, steps: int) -> dict[str, Any]:
    """10 epochs in batches of 64."""
    return {
        **CODET5P,
        **best_of("contrastive/loss"),
        "phases": ((task, steps, 64),),
        "text_code_pairs": {**STAGE2["text_code_pairs"], "text_length": 64, "code_length": 350},
    }


def lines_of(task: str, steps: int) -> dict[str, Any]:
    """30 epochs in batches of 32; encoder and cross-attention are frozen."""
    return {
        **CODET5P,
        **best_of("decoder_clm/loss"),
        "phases": ((task, steps, 32),),
        "decoder_clm": {"inputs_length": 1, "targets_length": 1024},
    }


FINETUNING: dict[str, dict[str, Any]] = {
    "summarize": {
        **CODET5P,
        **best_written("bleu", chosen(2)),
        "phases": (("summarize_python", 39_347, 64),),  # 10 × 251,820 / 64
        **seq2seq(256, 128),
    },
    "retrieve": pairs_of("retrieve_python", 39_347),  # 10 × 251,820 / 64
    "retrieve_advtest": pairs_of("retrieve_advtest", 39_347),
    "retrieve_cosqa": {  # 10 × 19,604 / 64
        **pairs_of("retrieve_cosqa", 3_064),
        "warmup_steps": chosen(306),
    },
    "complete_py150": lines_of("complete_py150", 89_063),  # 30 × 95,000 / 32
    "complete_java": lines_of("complete_java", 12_126),  # 30 × 12,934 / 32
    "mathqa_python": {
        **CODET5P,
        **best_of("seq2seq/loss"),
        "phases": (("mathqa_python", 18_009, 32),),  # 30 × 19,209 / 32
        **seq2seq(256, 256),
    },
    "gsm8k_python": {
        **CODET5P,
        **best_of("seq2seq/loss"),
        "warmup_steps": chosen(550),
        "phases": (("gsm8k_python", 5_495, 32),),  # 30 × 5,861 / 32
        **seq2seq(246, 138),
    },
    "retrieve_generate": {
        **CODET5P,
        **best_of("seq2seq/loss"),
        "phases": (("retrieve_generate_python", 78_694, 32),),  # 10 × 251,820 / 32
        **seq2seq(600, 320),
    },
    "mbpp": {  # neither trains on it
        **CODET5P,
        **best_of("seq2seq/loss"),
        "peak": chosen(2e-5),
        "warmup_steps": chosen(35),
        "phases": chosen((("mbpp", 351, 32),)),  # 30 × 374 / 32
        "seq2seq": {"inputs_length": chosen(512), "targets_length": chosen(512)},
    },
    "concode": {
        **CODET5,
        **best_written("bleu+exact_match", 3),
        "peak": 1e-4,
        "phases": (("concode", 93_750, 32),),  # 30 × 100,000 / 32
        **seq2seq(320, 150),
    },
    "refine_small": {
        **CODET5,
        **best_written("bleu+exact_match", 5),
        "peak": 5e-5,
        "phases": (("refine_small", 72_938, 32),),  # 50 × 46,680 / 32
        **seq2seq(130, 120),
    },
    "refine_medium": {
        **CODET5,
        **best_written("bleu+exact_match", 5),
        "peak": 5e-5,
        "phases": (("refine_medium", 81_819, 32),),  # 50 × 52,364 / 32
        **seq2seq(240, 240),
    },
    "translate": {
        **CODET5,
        **best_written("bleu+exact_match", 5),
        "peak": 5e-5,
        "phases": (("translate_java_cs", 41_200, 25),),  # 100 × 10,300 / 25
        **seq2seq(320, 256),
    },
    "defect": {
        **CODET5P,
        **best_of("classification/accuracy", chosen(2)),
        "phases": (("defect", 6_830, 32),),  # 10 × 21,854 / 32
        "classification": {"length": 512},
    },
    "clone": {
        **CODET5P,
        **best_of("pair_classification/f1"),
        "phases": (("clone", 180_206, 10),),  # 2 × 901,028 / 10
        "pair_classification": {"length": 400},
    },
}
EXPECTED: dict[str, dict[str, Any]] = {
    **{f"finetune/{name}": settings for name, settings in FINETUNING.items()},
    "stage1_220m": STAGE1,
    "stage1_770m": {**STAGE1, "accumulate": chosen(4)},
    "stage2_220m": STAGE2,
    "stage2_770m": STAGE2,
    "stage1_16b": {  # the paper states none of these for 2B and more, so those of its stage 1
        **{name: value for name, value in STAGE1.items() if name != "span_denoising"},
        "dropout": 0.0,
        "phases": chosen((("codet5p_stage1_clm", 100_000, 512 + 512),)),
        "accumulate": chosen(4),
    },
    "finetune_seq2seq": {  # as the released tuning script for summarisation
        **ADAMW,
        "weight_decay": 0.05,
        "schedule": "Linear",
        "initial": 0.0,
        "final": 0.0,
        "warmup_steps": 200,
        "peak": 5e-5,
        "dropout": 0.1,
        "loss_weights": 1,
        "phases": (("my_task", 78_694, 4 * 8),),  # 10 epochs of 251,820 examples
        "seq2seq": {"inputs_length": 320, "targets_length": 128},
        "accumulate": chosen(1),
    },
    "instruct_16b": {  # as the released script
        **ADAMW,
        "weight_decay": 0.0,
        "schedule": "Linear",
        "initial": 1e-5,
        "final": 1e-5,
        "warmup_steps": 30,
        "peak": 2e-5,
        "dropout": 0.0,
        "loss_weights": 1,
        "phases": chosen((("instruct", 234, 256),)),  # 3 epochs; 16 a device, of how many is open
        "seq2seq": {"inputs_length": 512, "targets_length": 512},
        "accumulate": chosen(16),
    },
    "quickstart_llm": {
        **QUICKSTART,
        **TINY_ADAMW,
        "weight_decay": chosen(0.1),
        "warmup_steps": chosen(25),
        "phases": chosen((("stdlib_decoder_clm", 250, 32),)),
        "decoder_clm": {"inputs_length": 1, "targets_length": chosen(192)},
    },
    "quickstart_frozen_llm": {
        **QUICKSTART,
        **TINY_ADAMW,
        "warmup_steps": chosen(20),
        "phases": chosen((("stdlib_stage1_seq2seq", 200, 64),)),
        "span_denoising": {
            **STAGE1["span_denoising"],
            "inputs_length": chosen(128),
            "targets_length": chosen(48),
        },
        "seq2seq_clm": {
            **STAGE1["seq2seq_clm"],
            "inputs_length": chosen(128),
            "targets_length": chosen(32),
        },
    },
    "quickstart_translate_stage1": {
        **QUICKSTART,
        "warmup_steps": chosen(100),
        "phases": chosen((("translation_stage1", 1_000, 32),)),
        "peak": chosen(3e-2),
        "span_denoising": {
            **STAGE1["span_denoising"],
            "inputs_length": chosen(128),
            "targets_length": chosen(48),
        },
        "seq2seq_clm": {
            **STAGE1["seq2seq_clm"],
            "inputs_length": chosen(96),
            "targets_length": chosen(96),
        },
    },
    "quickstart_translate": {
        **QUICKSTART,
        **best_written("bleu+exact_match", NEVER, 128),
        "warmup_steps": chosen(200),
        "phases": chosen((("translate_java_cs", 2_400, 16),)),
        "peak": chosen(3e-2),
        "seq2seq": {"inputs_length": chosen(112), "targets_length": chosen(112)},
    },
    "quickstart_stage1": {
        **QUICKSTART,
        "phases": chosen((("stdlib_stage1_denoise", 100, 32), ("stdlib_stage1", 150, 48))),
        "peak": chosen(2e-2),
        "span_denoising": {
            **STAGE1["span_denoising"],
            "inputs_length": chosen(128),
            "targets_length": chosen(64),
        },
        "seq2seq_clm": {
            **STAGE1["seq2seq_clm"],
            "inputs_length": chosen(96),
            "targets_length": chosen(96),
        },
        "decoder_clm": {"inputs_length": 1, "targets_length": chosen(128)},
    },
    "quickstart_stage2": {
        **QUICKSTART,
        "phases": chosen((("stdlib_stage2", 150, 192),)),
        "peak": chosen(1e-2),
        "text_code_pairs": {
            **STAGE2["text_code_pairs"],
            "text_length": chosen(32),
            "code_length": chosen(112),
            "momentum": chosen(None),
            "queue_size": chosen(0),
            "matching_rows": chosen(32),
        },
        "text_to_code": {"inputs_length": chosen(32), "targets_length": chosen(112)},
        "code_to_text": {"inputs_length": chosen(112), "targets_length": chosen(32)},
    },
}


def plain(value: Any) -> Any:
    """Without the marks."""
    if isinstance(value, Chosen):
        return value.value
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value


def resolved(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the arguments of `train` come to, defaults included."""
    optimizer = getattr(arguments["optimizer"], "optimizer", arguments["optimizer"])
    schedule = arguments["schedule"]
    stopping = arguments.get("early_stopping")
    told: dict[str, Any] = {}
    if stopping:
        told["early_stopping"] = stopping.metric, stopping.patience
    written = {metric.texts.rows for metric in arguments["evaluation"].metrics.values()}
    if written:
        (told["generated_rows"],) = written
    return {
        **told,
        "phases": tuple(dataclasses.astuple(phase) for phase in arguments["phases"]),
        "optimizer": type(optimizer).__name__,
        "weight_decay": optimizer.weight_decay,
        "betas": (optimizer.b1, optimizer.b2),
        "clip_norm": optimizer.clip_norm,
        "schedule": type(schedule).__name__,
        **dataclasses.asdict(schedule),
        "dropout": arguments["model"].dropout,
        "loss_weights": arguments.get("loss_weights") or 1,
        "accumulate": arguments.get("accumulate", 1),
        **{
            objective.name: {
                name: getattr(objective, name)
                for name in (*LENGTHS, *FIELDS.get(objective.name, ()))
                if hasattr(objective, name)
            }
            for objective in arguments["objectives"]
        },
    }


def test_every_run_is_listed():
    assert {f"{name}.gin" for name in EXPECTED} == {
        str(path.relative_to(gin_static.PACKAGE / "runs"))
        for path in (gin_static.PACKAGE / "runs").rglob("*.gin")
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_is_the_papers_or_says_what_was_chosen(name: str):
    file = f"runs/{name}.gin"
    text = (gin_static.PACKAGE / file).read_text()
    macros = [m for m in MACROS if f"%{m.partition('=')[0]}" in text]
    if name == "finetune_seq2seq":
        macros.append("MIXTURE_OR_TASK_NAME='my_task'")
    config = gin_config.load(train, [file], macros)
    assert resolved(config.arguments) == plain(EXPECTED[name])
    starts_from = config.arguments.get("init_from")
    assert (starts_from is not None) == ("%INITIAL_CHECKPOINT_PATH" in text)


@pytest.mark.parametrize("name", FINETUNING)
def test_steps_of_fine_tuning_are_the_epochs_that_the_file_says(name: str):
    """`TRAIN_STEPS = 39_347  # 10 epochs of 251,820 functions`, and evaluations at each end."""
    text = (gin_static.PACKAGE / f"runs/finetune/{name}.gin").read_text()
    steps, epochs, examples = re.search(
        r"^TRAIN_STEPS = ([\d_]+)  # .*?(\d+) epochs of (?:all )?([\d,]+) ", text, re.M
    ).groups()
    (batch,) = re.search(r"^BATCH_SIZE = (\d+)", text, re.M).groups()
    (period, tenth) = re.search(
        r"^EVAL_PERIOD = ([\d_]+)  # (a tenth of )?an epoch", text, re.M
    ).groups()
    examples = int(examples.replace(",", ""))
    assert int(steps) == math.ceil(int(epochs) * examples / int(batch))
    per_epoch = examples / int(batch) / (10 if tenth else 1)
    assert abs(int(period) - per_epoch) <= 1


def test_only_decoder_and_embedding_train_for_completion():
    macros = [*MACROS]
    arguments = gin_config.load(train, ["runs/finetune/complete_py150.gin"], macros).arguments
    specs = CodeT5p(arguments["model"]).specs
    frozen = arguments["trainable"].split(specs).frozen
    names = {name for name, _ in flatten(specs)}
    crossing = {name for name in names if "cross_attention" in name}
    assert frozen == crossing | {name for name in names if name.startswith("encoder/")}
    assert {
        "decoder/layers/cross_attention_norm/scale",
        "decoder/layers/cross_attention/q",
    } <= frozen
    assert {"embedding", "decoder/relative_bias", "decoder/final_norm/scale"} <= names - frozen


def test_classifiers_are_encoders():
    for name, pairs in (("defect", False), ("clone", True)):
        arguments = gin_config.load(train, [f"runs/finetune/{name}.gin"], [*MACROS]).arguments
        specs = CodeT5p(arguments["model"]).specs
        assert specs.keys() == {"embedding", "encoder", "classifier"}
        assert ("hidden" in specs["classifier"]) == pairs


def test_the_page_on_fine_tuning_has_the_settings_of_the_files():
    """Its table of settings, and each file in its table of tasks."""
    page = (Path(__file__).parents[2] / "docs/finetuning.md").read_text(encoding="utf-8")
    tasks, settings = (page.split(head)[1].split("\n## ")[0] for head in ("## One", "## What is"))
    assert {name for name in re.findall(r"`([a-z0-9_]+)`", tasks)} >= FINETUNING.keys()
    seen: list[str] = []
    for line in settings.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        patterns = re.findall(r"`([^`]+)`", cells[0])
        if len(cells) != 7 or not patterns:
            continue
        names = [name for name in FINETUNING for p in patterns if fnmatch.fnmatch(name, p)]
        seen += names
        for name in names:
            found = plain(FINETUNING[name])
            (_, _, batch), (_, patience) = found["phases"][0], found["early_stopping"]
            assert (float(cells[2]), int(cells[3])) == (found["peak"], batch)
            assert cells[5] == ("\N{EN DASH}" if patience is None else str(patience))
            text = (gin_static.PACKAGE / f"runs/finetune/{name}.gin").read_text()
            assert re.search(rf"TRAIN_STEPS = .* {cells[4]} epochs of", text)
            lengths = {
                n for part in found.values() if isinstance(part, dict) for n in part.values()
            }
            said = {int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", cells[1])}
            assert said & lengths
            assert said <= lengths or len(names) > 1
    assert sorted(seen) == sorted(FINETUNING)
