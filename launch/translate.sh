#!/usr/bin/env bash
# Java to C# with a small model, with and without pretraining, on real methods, on this machine.
#
#   ./launch/translate.sh DATA [FOLDER]    default: ./translate_run; started again, it goes on
#
# DATA holds code_translation/{train,valid,test}.java-cs.txt.{java,cs}, CodeXGLUE's files, plain or
# gzipped. Makes .venv, installs the project into it, and goes from nothing to the benchmark: a
# tokenizer and stage 1 on the methods of the training split, fine-tuning from there and, with as
# many steps, from random weights, and the translations of the test by both, next to a copy of the
# Java. docs/translate.md has the figures. See environment.sh for $PYTHON and $VENV.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DATA="${1:?pass the folder that holds code_translation/, see docs/translate.md}"
RUN="${2:-translate_run}"
JAVA=("$DATA"/code_translation/test.java-cs.txt.java*)  # plain or gzipped
if [[ ! -e "${JAVA[0]}" ]]; then
  echo "There is no ${JAVA[0]}; pass the folder that holds code_translation/, see docs/translate.md." >&2
  exit 1
fi
make_environment ""
CACHE=(--gin.CACHE_DIR="'$RUN/cache'")
codet5p() { "$VENV/bin/codet5p" "$@"; }
say() { printf '\n== %s\n' "$*"; }
score() { # name, then what is scored
  codet5p evaluate --benchmark=translate_java_cs --finetune_dir="$DATA" --beams=1 \
    --out="$RUN/benchmark/$1" "${@:2}"
}

say "tokenizer and data, of the training split"
if [[ ! -e "$RUN/tokenizer/roles.json" ]]; then
  "$VENV/bin/python" -c '
import sys
from codet5p_jax.data.corpora.finetuning.aligned import translation
from codet5p_jax.data.tokenizer import train_tokenizer

data, folder, size = sys.argv[1:]
pairs = translation(f"{data}/code_translation", "train", setting="DATA")
train_tokenizer((pair[side] for pair in pairs for side in ("source", "target")), int(size), folder)
' "$DATA" "$RUN/tokenizer" 4096
fi
codet5p prepare translation_stage1 translate_java_cs --splits=train,validation \
  --tokenizer="$RUN/tokenizer" --finetune_dir="$DATA" --cache_dir="$RUN/cache"

say "stage 1: what Java and C# look like"
codet5p train --gin_file=runs/quickstart_translate_stage1.gin --gin.MODEL_DIR="'$RUN/stage1'" \
  "${CACHE[@]}"

say "Java to C#, from there"
codet5p train --gin_file=runs/quickstart_translate.gin --gin.MODEL_DIR="'$RUN/pretrained'" \
  --gin.INITIAL_CHECKPOINT_PATH="'$RUN/stage1'" "${CACHE[@]}"

say "Java to C#, from random weights"
codet5p train --gin_file=runs/quickstart_translate.gin --gin.MODEL_DIR="'$RUN/scratch'" \
  --gin.train.train.init_from=None "${CACHE[@]}"

say "the test"
score copy --predictions="${JAVA[0]}"
score scratch --checkpoint="$(echo "$RUN"/scratch/best/*)"
score pretrained --checkpoint="$(echo "$RUN"/pretrained/best/*)"
"$VENV/bin/python" -c '
import json, sys

print("\nJava to C#                  BLEU  exact match")
for name in ("copy", "scratch", "pretrained"):
    with open(f"{sys.argv[1]}/{name}/translate_java_cs/scores.json") as file:
        scores = json.load(file)["scores"]
    print("{:20}{bleu:12.2f}{exact_match:13.2f}".format(name, **scores))
' "$RUN/benchmark"
