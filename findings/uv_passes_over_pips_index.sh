#!/usr/bin/env bash
# uv 0.13.9 beside pip 26.3: uv reads none of pip's configuration. With PIP_INDEX_URL, or pip.conf, naming a private
# index, `pip install` takes a package from there; `uv pip install` in the same shell asks the public index for the same
# name, where anybody may have registered it. uv documents that; its command line looks the same.
# Seen:
#   pip: Would install only_in_the_private_index-1.0
#   uv: only-in-the-private-index was not found in the package registry
# Our guard: .ci/install_packages takes uv only where pip has no index of its own configured, or uv one too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pip==26.3 uv==0.13.9
name=only-in-the-private-index
mkdir -p "$folder/index/$name"
"$python" - "$folder/index/$name" <<'PY'
import sys, zipfile

name, version = "only_in_the_private_index", "1.0"
info = f"{name}-{version}.dist-info"
file = f"{name}-{version}-py3-none-any.whl"
with zipfile.ZipFile(f"{sys.argv[1]}/{file}", "w") as wheel:
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
with open(f"{sys.argv[1]}/index.html", "w") as page:
    page.write(f'<!DOCTYPE html><a href="{file}">{file}</a>')
PY
export PIP_INDEX_URL="file://$folder/index"
pip=$("$folder/venv/bin/pip" install --dry-run --no-cache-dir --disable-pip-version-check "$name" 2>/dev/null | tail -1)
uv=$("$folder/venv/bin/uv" --no-config pip install --dry-run --no-cache --python "$folder/venv/bin/python" "$name" 2>&1 || true)
echo "pip: $pip"
uv=$(echo "$uv" | tr -s ' \n' ' ' | grep -o "$name was not found in the package registry")
echo "uv: $uv"
[ "$pip" = "Would install ${name//-/_}-1.0" ]
[ "$uv" = "$name was not found in the package registry" ]
