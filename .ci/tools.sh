#!/usr/bin/env bash
# Install what the tests of Arm code and of hardware need, where this user may: cross compilers, an emulator, a simulator.
# Without them those tests are skipped, and say so.
set -euo pipefail
packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user
    g++ verilator)
commands=(aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc qemu-aarch64 qemu-arm g++ verilator)

missing=()
for name in "${commands[@]}"; do command -v "$name" >/dev/null || missing+=("$name"); done
if [ ${#missing[@]} = 0 ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no ${missing[*]}: install ${packages[*]} to run all tests" >&2
    exit 0
fi
echo "installing ${packages[*]} …" >&2
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null 2>&1; then
    echo "apt-get could not install ${packages[*]}: tests of Arm code and of hardware will be skipped" >&2
fi
