#!/usr/bin/env bash
# Checks and measures everything that takes a GPU, in less than 8 minutes: bash benchmarks/gpu.sh [OUTPUT_DIR]
# DEVICE=cpu tries the script itself, with small sizes, where there is no GPU.
set -euo pipefail
mkdir -p "${1:-gpu}"
output=$(cd "${1:-gpu}" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=${DEVICE:-cuda}
if [ "$device" = cpu ]; then
  batch=(--batch 64)
  one=(--trainer.accelerator=cpu)
  large=("${one[@]}" --data.batch_size=512)
  all=("${large[@]}" --trainer.devices=2 --trainer.strategy=ddp)
else
  batch=(--batch 16384)
  one=(--trainer.accelerator=gpu --trainer.devices=1 --trainer.strategy=auto)
  large=("${one[@]}" --trainer.precision=bf16-mixed --data.batch_size=8192)
  all=(--config "$PWD/configs/multi_gpu.yaml")
fi
summary=()
failed=0

# part NAME SECONDS COMMAND...: runs it, keeps what it prints, and goes on in any case.
part() {
  local name=$1 limit=$2 start=$SECONDS verdict=ok
  shift 2
  echo "== $name"
  if timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$output/$name.txt"; then :; else
    verdict="FAILED with exit status $?"
    failed=1
  fi
  summary+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - start)) "$verdict")")
}

# solve NAME SECONDS SEEDS OPTIONS...: fails unless all 111,000 problems are solved.
solve() {
  local name=$1 limit=$2 seeds=$3
  shift 3
  # shellcheck disable=SC2086 # several seeds are several words
  part "$name" "$limit" python -m benchmarks.time_to_solve --patience 5 --seeds $seeds --output "$output/$name.json" -- "$@"
}

# Stops after two epochs, goes on for two more, and tests what came out.
resume() {
  run() { python -m toolagent_pl "$@" "${one[@]}" --trainer.default_root_dir="$output/resumed"; }
  rm -rf "$output/resumed"
  run fit --trainer.max_epochs=2
  run fit --trainer.max_epochs=4 --ckpt_path last
  run test --ckpt_path last
  run predict --ckpt_path last
  python - "$output"/resumed/lightning_logs/version_0/checkpoints/last.ckpt <<'PYTHON'
import sys, torch
step = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["global_step"]
sys.exit(0 if step == 40 else f"the resumed run ended at step {step}, not 40")
PYTHON
}

part check 65 python -m benchmarks.gpu --check --device "$device"
part measure 70 python -m benchmarks.gpu --measure --device "$device" --output "$output/measure.json"
part compiled 90 python -m benchmarks.gpu --measure --compile --precision bf16 "${batch[@]}" --device "$device" \
  --output "$output/compiled.json"
part compiled_fit 45 python -m toolagent_pl fit "${one[@]}" --model.compile_step=true --trainer.precision=bf16-mixed \
  --data.stages=[T0] --curriculum.stages=[0] --model.machine.max_steps=3 --trainer.default_root_dir="$output/compiled_fit"
solve solve 60 "0 1 2" "${one[@]}"
solve large 35 0 "${large[@]}"
solve all 45 0 "${all[@]}"
if [ "$device" != cpu ]; then
  solve half 30 0 "${one[@]}" --trainer.precision=16-mixed
fi
export -f resume
export output one_words="${one[*]}"
part resume 40 bash -euo pipefail -c 'read -ra one <<< "$one_words"; resume'

echo "== summary, also in $output"
printf '%s\n' "${summary[@]}" | tee "$output/summary.txt"
exit "$failed"
