#!/usr/bin/env bash
# mkdocs 1.6.1: `build --strict --quiet` ends with exit code 0 although a page links to one that is not
# there; `build --strict` on the same pages ends with 1. Strict mode counts the warnings that are shown,
# and --quiet shows none. A CI step that only wants less output no longer checks anything.
# Seen:
#   strict: exit code 1
#   strict and quiet: exit code 0
# Our guard: docs/build_site.py runs mkdocs without --quiet.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check mkdocs==1.6.1
mkdir "$folder/docs"
printf 'site_name: Site\n' > "$folder/mkdocs.yml"
printf '# Page\n\n[nowhere](nowhere.md)\n' > "$folder/docs/index.md"
build() {
    local code=0
    "$folder/venv/bin/mkdocs" build -f "$folder/mkdocs.yml" "$@" > /dev/null 2>&1 || code=$?
    echo "$code"
}
strict=$(build --strict)
quiet=$(build --strict --quiet)
echo "strict: exit code $strict"
echo "strict and quiet: exit code $quiet"
[ "$strict" = 1 ] && [ "$quiet" = 0 ]
