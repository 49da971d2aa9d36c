#!/usr/bin/env bash
# What a frozen language model gains from an encoder, on real code, on this machine.
#
#   ./launch/frozen_llm.sh [FOLDER]    default: ./frozen_llm_run; started again, it goes on
#
# Makes .venv, installs the project into it, and goes the way of docs/frozen_llm.md from nothing: a
# small language model of the Python standard library, the same network again as its encoder,
# training with the language model frozen, and losses on modules that neither has seen. See
# environment.sh for $PYTHON and $VENV.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment ""
RUN="${1:-frozen_llm_run}"
CACHE=(--gin.CACHE_DIR="'$RUN/cache'")
codet5p() { "$VENV/bin/codet5p" "$@"; }
say() { printf '\n== %s\n' "$*"; }

say "tokenizer and data, of the standard library"
codet5p quickstart --until=tokenizer --output_dir="$RUN"
codet5p prepare stdlib_decoder_clm stdlib_stage1_seq2seq \
  --tokenizer="$RUN/tokenizer" --cache_dir="$RUN/cache"

say "a language model: a decoder alone"
codet5p train --gin_file=runs/quickstart_llm.gin --gin.MODEL_DIR="'$RUN/llm'" "${CACHE[@]}"

say "the same network, seeing both ways, as its encoder"
if [[ ! -e "$RUN/composed" ]]; then
  codet5p compose --encoder="$RUN/llm" --decoder="$RUN/llm" --out="$RUN/composed" \
    --cross_attention_layers=last:2 --cross_attention_init=zero
fi

say "training with the language model frozen"
codet5p train --gin_file=runs/quickstart_frozen_llm.gin --gin.MODEL_DIR="'$RUN/frozen'" \
  --gin.INITIAL_CHECKPOINT_PATH="'$RUN/composed'" "${CACHE[@]}"

say "the same targets of held-out modules, given different sources"
codet5p evaluate --gin_file=runs/quickstart_frozen_llm.gin --gin.MODEL_DIR="'$RUN/frozen'" \
  "${CACHE[@]}" --split=test --sources=own,other,none,prompt
codet5p compose --verify="$RUN/frozen" --decoder="$RUN/llm"
