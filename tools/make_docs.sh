#!/usr/bin/env bash
# The API reference from the public headers, in build/docs/html. Fails where something public is not documented.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v doxygen >/dev/null; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  echo "docs: installing doxygen"
  "${as_root[@]}" apt-get -qq update
  "${as_root[@]}" apt-get -qq install -y --no-install-recommends doxygen >/dev/null
fi
mkdir -p build
headers=$(sed '/^# Included/,$d; /^#/d; s|^|INPUT += adder/|' adder/public_headers.txt)
{ cat docs/Doxyfile; echo "$headers"; } | doxygen -
echo "docs: build/docs/html/index.html"
