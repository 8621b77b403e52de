#!/bin/sh
# Makes the environment of the peer: benchmarks/peers/make.sh [folder], by default .venv beside this file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-"$here/.venv"}

"${PYTHON:-python3}" -I -m venv "$venv"
"$venv/bin/python" -I -m pip install --quiet -r "$here/requirements.txt"
"$venv/bin/python" -I -m pip install --quiet --no-deps -r "$here/requirements-no-deps.txt"

site=$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
rm -rf "$site/torchvision"
cp -R "$here/torchvision_stand_in" "$site/torchvision"
"$venv/bin/python" -I -c 'import open_flamingo'
