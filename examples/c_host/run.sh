#!/usr/bin/env bash
# Compile the digits network for this machine, or with an argument for an instruction set such as neon; build the
# C host against it; run it on the evaluation images. Needs Python 3.11, a C compiler (for AArch64 elsewhere:
# gcc-aarch64-linux-gnu and qemu-user) and no TVM at run time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
isa=${1:-native}
bash ../../.ci/venv.sh
export PATH="$PWD/../../.venv/bin:$PATH"
build=build/$isa
mkdir -p "$build"

qcc compile ../quickstart/digits.onnx -d ../quickstart/calibration.npz --isa "$isa" -o "$build/digits" --force
python -c 'import numpy, sys; numpy.load(sys.argv[1])["image"].astype("<f4").tofile(sys.argv[2])' \
    ../quickstart/evaluation.npz "$build/images.bin"

device=$build/digits/device
network=$(basename "$device"/network-*.so)
cc=cc run=()
if [ "$(uname -m)" != aarch64 ] && grep -q '"machine": "aarch64"' "$device/network.json"; then
    cc=aarch64-linux-gnu-gcc run=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
fi
"$cc" -std=c11 -O2 -Wall -Wextra -I "$device" main.c -o "$build/host" \
    -L "$device" -l:"$network" -l:"${network/network/border}" -Wl,-rpath,"$PWD/$device"
"${run[@]}" "$build/host" "$device"/constants-*.bin < "$build/images.bin" > "$build/scores.txt"
head -n 3 "$build/scores.txt"
echo "… $(wc -l < "$build/scores.txt") images in all, in examples/c_host/$build/scores.txt"
