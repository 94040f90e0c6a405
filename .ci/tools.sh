#!/usr/bin/env bash
# Install what the tests of AArch64 artifacts need, where this user may: a cross compiler and an emulator.
# Without them those tests are skipped, and say so.
set -euo pipefail
packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)

if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no AArch64 tools: install ${packages[*]} to run all tests" >&2
    exit 0
fi
echo "installing ${packages[*]} …" >&2
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null 2>&1; then
    echo "apt-get could not install ${packages[*]}: tests of AArch64 will be skipped" >&2
fi
