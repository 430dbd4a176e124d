#!/usr/bin/env bash
# Trains the nano base and repeats Table 10 and Figure 5 of LoRTA on it, in one command.
#
#     scripts/nano.sh DATA OUTPUT [--scale gpu|tiny | --shipped]
#
# DATA holds what data/README.md says how to get: chains.tar (structures), validation.txt (the chains
# of it that nanoFold validates on), cameo/ (CAMEO's targets; cameo.txt may list them), sequences.fasta.
# Relative paths begin at the project's root. Run it again after an interruption: a step resumes where
# it was, or is skipped when it is done. OUTPUT/hours.csv has the seconds of each attempt at a step,
# OUTPUT/results.json the scores, OUTPUT/search/report Table 10.
# It is made for two CPU cores. --scale gpu is for one GPU: a larger model and more samples; --scale
# tiny makes a few steps of everything, to try the script. --shipped trains no base: it makes Table 10
# and Figure 5 with the one in data/nano.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { echo "usage: scripts/nano.sh DATA OUTPUT [--scale gpu|tiny | --shipped]" >&2; exit 2; }
[ $# -ge 2 ] || usage
data=$1 out=$2
configs=(--config configs/nano/base.yaml)
base=() short=() short_points="100 200 500 1000" more=400 search=()
model=$out/ship only=".*"
language_model=(--crop 128 --layers 6 --width 160 --heads 10 --lr 2e-3 --precision float32
    --accelerator cpu)
case "${*:3}" in
    "") batch=4 points="400 1000 2000 2800"
        base=(--engine.devices 2)
        language_model+=(--steps 1300 --save-every 325 --warmup-steps 200 --batch-size 32 --devices 2) ;;
    "--shipped") points="" model=data/nano only="data|search_data|search" ;;
    "--scale gpu") batch=16 points="625 1250 3125 6250"
        configs+=(--config configs/nano/gpu.yaml)
        search=(--executor.concurrent 1)
        language_model=(--crop 256 --layers 12 --width 320 --heads 20 --lr 1e-3 --batch-size 256
            --steps 6000 --save-every 1000 --warmup-steps 500) ;;
    "--scale tiny") batch=4 points="2 4" short_points="2" more=2
        short=(--engine.steps 2 --checkpoints.every 2)
        base=(--engine.steps 4 --checkpoints.every 2)
        search=(--engine.steps 2 --ladder.halve_at 1 --seeds 0)
        language_model+=(--steps 2 --save-every 2 --warmup-steps 1 --batch-size 2) ;;
    *) usage ;;
esac
export PATH=".venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir -p "$out/done"
if [ "$(cat "$out/scale" 2>/dev/null || echo "${*:3}")" != "${*:3}" ]; then
    echo "$out: was made with other options; choose another folder" >&2
    exit 2
fi
echo "${*:3}" >"$out/scale"

# step NAME COMMAND...: runs a command until it has ended well once, and notes its seconds.
step() {
    local name=$1 start=$SECONDS status=0
    shift
    [[ ! -e $out/done/$name && $name =~ ^($only)$ ]] || return 0
    echo "== $name"
    "$@" || status=$?
    echo "$name,$((SECONDS - start))" >>"$out/hours.csv"
    [ $status = 0 ] || exit $status
    touch "$out/done/$name"
}

# score RUN NAME FLAG...: evaluate also fails where a chain has no score; its summary.json, the last
# file, says so then.
score() {
    local run=$out/$1 scores=$out/scores/$2
    shift 2
    esmfold-peft evaluate --run "$run" --output "$scores" "$@" || [ -e "$scores/summary.json" ]
}
# Exit code 3 means that no α of an adapter survives.
search() { esmfold-peft search "$@" || [ $? = 3 ]; }

cameo=("$data/cameo")
[ -e "$data/cameo.txt" ] && cameo+=("$data/cameo.txt")
step data python scripts/nano_data.py --train "$data/chains.tar" \
    --validation "$data/chains.tar" "$data/validation.txt" --cameo "${cameo[@]}" \
    --sequences "$data/sequences.fasta" --output "$out/data"
step language_model python scripts/pretrain_language_model.py "$out/data/train.fasta" \
    --held-out "$out/data/held_out.fasta" --output "$out/language_model" "${language_model[@]}" --half

chains=(--data.train "$out/data/train" --data.validation "$out/data/validation")
weights=(--model.language_model.weights "$out/language_model/esm2.pt")
# train RUN FLAG...
train() {
    esmfold-peft train "${configs[@]}" --adapter.kind none --run "$out/$1" --resume auto \
        --engine.validate_raw false "${chains[@]}" "${weights[@]}" "${base[@]}" "${@:2}"
}
# The base begins with what was learnt on short crops, which count as samples too: 10 a step with one
# structure layer, then 16 a step with 2 and with 4.
step short train short --config configs/nano/short.yaml "${short[@]}"
# grow LAYERS START
grow() {
    train "short_$1" --config configs/nano/short.yaml --model.structure.layers "$1" --start_from "$out/$2" \
        --optimizer.lr 5e-4 --engine.batch_size 16 --engine.micro_batch 8 --engine.steps "$more" \
        --engine.validate_every "$more" --checkpoints.every "$more"
}
step short_2 grow 2 short
step short_4 grow 4 short_2
step base train base --start_from "$out/short_4"
# on_validation RUN SAMPLES STEP
on_validation() {
    step "score_$2" score "$1" "validation_$2" --checkpoint "$3" --store "$out/data/validation"
}
for steps in $short_points; do on_validation short $((10 * steps)) "$steps"; done
seen=$((10 * ${short_points##* } + 16 * more))
on_validation short_2 $seen "$more"
on_validation short_4 $((seen += 16 * more)) "$more"
for steps in $points; do on_validation base $((seen + batch * steps)) "$steps"; done
step score_cameo score base cameo --store "$out/data/cameo"

# What data/nano ships, without optimizer state and checkpoints: a folder that can be moved.
ship() {
    mkdir -p "$out/ship/base"
    cp "$out/language_model/esm2.pt" "$out/ship/"
    cp "$out/base/"{metrics.csv,model.safetensors,provenance.json,status.json} "$out/ship/base/"
    sed 's|^    weights: .*/esm2.pt$|    weights: ../esm2.pt|' "$out/base/config.yaml" >"$out/ship/base/config.yaml"
}
step ship ship

# Trials are scored on the validation chains of up to 100 residues: most of the time would go there.
step search_data esmfold-peft prepare "$data/chains.tar" "$data/validation.txt" --filters.min_length 40 \
    --filters.max_length 100 --clusters none --output "$out/data/search"
step search search "${configs[@]}" --config configs/nano/table10.yaml --output "$out/search" \
    --start_from "$model/base" "${chains[@]}" --data.validation "$out/data/search" \
    --model.language_model.weights "$model/esm2.pt" "${search[@]}"
step results python scripts/benchmarks/nano.py "$out" --output "$out/results.json" --figure "$out/curve.svg"
