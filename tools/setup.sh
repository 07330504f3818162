#!/usr/bin/env bash
# Installs what the build needs: Debian packages and a Python environment in .venv with the pinned LibTorch. Safe to repeat; asks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ cmake ninja-build ccache git pkg-config python3-venv libgomp1
          libhwy-dev libtomlplusplus-dev libcli11-dev nlohmann-json3-dev libfmt-dev
          libzstd-dev liblzma-dev zlib1g-dev libxxhash-dev libcairo2-dev fonts-dejavu-core libgtest-dev libgmock-dev)

missing_packages() {
  local p
  for p in "${packages[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
  done
}

install_packages() {
  command -v dpkg-query >/dev/null || {
    echo "setup: this is no Debian or Ubuntu system; install the equivalents of: ${packages[*]}" >&2
    return 0
  }
  local missing
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
      echo "setup: these packages are missing and can't be installed without root: ${missing[*]}" >&2
      echo "setup: run: sudo apt-get install -y ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo -n)
  fi
  echo "setup: installing ${missing[*]}"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
}

install_python() {
  # The stamp lists what is installed; with a torch package of your own, torch is not wanted.
  local wanted stamp=.venv/.requirements what="LibTorch and the Python tools into .venv (about 5 GB, a minute or more)"
  wanted=$(cat tools/requirements.txt)
  if [ -n "${ADDER_TORCH:-}" ]; then
    wanted=$(grep -v '^torch==' <<<"$wanted")
    what="the Python tools into .venv; LibTorch is the one in $ADDER_TORCH"
  fi
  [ -f "$stamp" ] && ! grep -qvxFf "$stamp" <<<"$wanted" && return 0
  echo "setup: installing $what"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin <<<"$wanted"
  echo "$wanted" >"$stamp"
}

install_packages
install_python
