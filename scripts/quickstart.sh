#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'END'
Train a small Pyramidion on long documents and look at it: bash scripts/quickstart.sh [options]

Sets up .venv, shows what the small pretrained models do, then fetches and prepares documents, trains, writes the
summaries of the test split, scores them, and draws a page. About 10 minutes of training on 2 cores. Ctrl-C is safe: the
same command goes on where it stopped.

  --out DIR        folder of the run (default: runs/quickstart)
  --corpus NAMES   built-in documents: aclsum, plos, pubmed-abstracts, comma-separated (default: aclsum,plos)
  --updates N      train for N updates (default: 400); more than before goes on training
  --minutes N      train for N minutes instead
  --beam N         beam of the summaries (default: 4)
  --cpu            do not use a GPU
  --help           this text
END
}

wrong() {
  echo "error: $*" >&2
  exit 2
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=
CORPUS=aclsum,plos
UPDATES=400
MINUTES=
BEAM=4
CPU=
VALIDATE=50 # updates between validations, and between checkpoints

while [ $# -gt 0 ]; do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --cpu)
      CPU=1
      shift
      continue
      ;;
    --out | --corpus | --updates | --minutes | --beam) [ $# -ge 2 ] && [ -n "$2" ] || wrong "$1 needs a value" ;;
    *) wrong "$1: unknown option (see --help)" ;;
  esac
  case $1 in
    --out) OUT=$2 ;;
    --corpus) CORPUS=$2 ;;
    --updates) UPDATES=$2 ;;
    --minutes) MINUTES=$2 ;;
    --beam) BEAM=$2 ;;
  esac
  case $1 in
    --updates | --minutes | --beam) [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || wrong "$1 $2: not a whole number above 0" ;;
  esac
  shift 2
done

if [ -n "$OUT" ]; then
  mkdir -p "$OUT" 2>/dev/null || wrong "--out $OUT: cannot make that folder"
  OUT=$(cd "$OUT" && pwd)
  OUT=${OUT#"$ROOT/"}
else
  OUT=runs/quickstart
fi

interrupted() {
  echo
  echo "interrupted; run the same command again to go on" >&2
  exit 130
}
trap interrupted INT TERM

say() { printf '\n== %s\n' "$*"; }

# stage NAME [--add] [--shorten [--updates N]] -- COMMAND ...: runs it and keeps its time and memory for the report
stage() {
  local name=$1 status=0
  shift
  python -m fairseq_efficient.report.stages --file "$OUT/stages.json" --name "$name" "$@" || status=$?
  if [ "$status" -eq 130 ]; then interrupted; fi
  [ "$status" -eq 0 ] || exit "$status"
}

setup() {
  say "1/7 environment"
  bash "$ROOT/scripts/bootstrap.sh" || exit
  cd "$ROOT"
  export PATH="$ROOT/.venv/bin:$PATH"
  mkdir -p "$OUT"
  local device
  device=$(python -c 'import torch
print("cpu" if not torch.cuda.is_available() else "bf16" if torch.cuda.is_bf16_supported() else "fp16")')
  if [ -n "$CPU" ] || [ "$device" = cpu ]; then
    TRAIN_ON=(--cpu)
    DECODE_ON=(--cpu)
    echo "computing on the CPU"
  else
    TRAIN_ON=("--$device")
    DECODE_ON=()
    echo "computing on the GPU, training in $device"
  fi
}

pretrained() {
  say "2/7 small pretrained models"
  if ! compgen -G 'pretrained/*/model.safetensors' >/dev/null; then
    echo "none here: the folder pretrained comes with the git repository only"
    return
  fi
  if python scripts/try_pretrained.py; then
    echo
    echo "Made from scratch by scripts/experiments/pretrained.py; what they learned from, and one command for each to go on"
    echo "with, is in pretrained/README.md. What follows trains a model of your own."
  else
    echo "going on without them" >&2
  fi
}

prepare() {
  say "3/7 documents: $CORPUS"
  local command=(python scripts/prepare_summarization.py "$OUT/data" --corpus "$CORPUS" --keep-text)
  if [ -f "$OUT/data/prepare.json" ]; then
    "${command[@]}" # says that they are ready, or that other ones are there
  else
    stage prepare -- "${command[@]}"
  fi
}

train() {
  local wanted="updates $UPDATES" budget=(--max-update "$UPDATES") done_kind='' done_count=0
  if [ -n "$MINUTES" ]; then
    wanted="minutes $MINUTES"
    budget=(--max-update 1000000 --stop-time-hours "$(awk "BEGIN { print $MINUTES / 60 }")")
  fi
  say "4/7 training: $wanted"
  [ ! -f "$OUT/trained" ] || read -r done_kind done_count <"$OUT/trained"
  if [ "$done_kind" = "${wanted% *}" ] && [ "$done_count" -ge "${wanted#* }" ]; then
    echo "done before"
    return
  fi
  echo "all output: $OUT/train.log; checkpoints: $OUT/checkpoints, every $VALIDATE updates"
  [ ! -f "$OUT/checkpoints/checkpoint_last.pt" ] || echo "going on from the last checkpoint"
  stage train --add --shorten --updates "$([ -n "$MINUTES" ] && echo 0 || echo "$UPDATES")" -- \
    fairseq-train "$OUT/data" --user-dir deep_pyramidion --task long_summarization --arch pyramidion_tiny \
    "${TRAIN_ON[@]}" "${budget[@]}" --max-target-positions 512 --batch-size 8 --update-epoch-batch-itr True \
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.1 --optimizer adam \
    --adam-betas '(0.9, 0.98)' --lr 1e-3 --lr-scheduler inverse_sqrt --warmup-updates 100 --clip-norm 1.0 --seed 1 \
    --validate-interval 100000 --validate-interval-updates "$VALIDATE" --eval-rouge --eval-rouge-max-samples 16 \
    --eval-rouge-args '{"beam": 1, "min_len": 40, "max_len_b": 160, "no_repeat_ngram_size": 3}' \
    --save-dir "$OUT/checkpoints" --save-interval 100000 --save-interval-updates "$VALIDATE" --keep-interval-updates 1 \
    --log-format json --log-interval 10 --log-file "$OUT/train.log" --num-workers 1
  echo "$wanted" >"$OUT/trained"
}

decode() {
  say "5/7 summaries of the test split, beam $BEAM"
  local log=$OUT/generate-test.txt checkpoint=$OUT/checkpoints/checkpoint_best.pt
  if [ -f "$log" ] && [ ! "$checkpoint" -nt "$log" ] && [ "$(cat "$OUT/decoded" 2>/dev/null)" = "beam $BEAM" ]; then
    echo "done before"
    return
  fi
  rm -rf "$OUT/decoding"
  stage generate --shorten -- \
    fairseq-generate "$OUT/data" --user-dir deep_pyramidion --task long_summarization --path "$checkpoint" \
    ${DECODE_ON[@]+"${DECODE_ON[@]}"} --gen-subset test --batch-size 8 --beam "$BEAM" --min-len 100 --max-len-b 300 \
    --no-repeat-ngram-size 3 --bpe sentencepiece --sentencepiece-model "$OUT/data/spm.model" --scoring rouge \
    --results-path "$OUT/decoding" --log-format simple --log-interval 1
  mv "$OUT/decoding/generate-test.txt" "$log"
  rmdir "$OUT/decoding"
  echo "beam $BEAM" >"$OUT/decoded"
  echo "written to $log"
}

score() {
  say "6/7 scores: the model, the documents' first sentences (lead), their best sentences by hindsight (oracle)"
  stage score -- python scripts/score_rouge.py --generate-log "$OUT/generate-test.txt" \
    --floors "$OUT/data/test.source.txt" --json "$OUT/scores.json"
}

draw() {
  say "7/7 page"
  python scripts/report.py deep_pyramidion "$OUT" --out "$OUT/report.html"
}

setup
pretrained
prepare
train
decode
score
draw

cat <<END

Open $OUT/report.html in a browser.
A model trained from scratch on so few documents learns the look of an abstract, not what to say: expect it below the
lead floor. What changes that is more documents and longer training, not more minutes here; README.md, "Train on your
own documents", says how.
END
