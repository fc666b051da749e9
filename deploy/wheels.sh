#!/bin/sh
# deploy/wheels.sh CONTEXT: makes the build context of deploy/Dockerfile: the Dockerfile itself, healthy.py, and
# `wheels` with Causeway and all that it needs at run time, in the versions of constraints.txt.
#
# pip runs here on the host, with whatever configuration it has; nothing of that gets into an image. The wheels
# are for the Python of the image (Debian 12: CPython 3.11), whichever Python the host has.
set -eu
context=${1:?usage: deploy/wheels.sh CONTEXT}
cd "$(dirname "$0")/.."
pip=.venv/bin/pip
test -x $pip || { echo "deploy/wheels.sh: no $pip: run \`make setup\` first" >&2; exit 1; }
machine=${MACHINE:-$(uname -m)}

mkdir -p "$context"
rm -rf "$context/wheels"
mkdir "$context/wheels"
cp deploy/Dockerfile deploy/healthy.py "$context/"

# Causeway's own wheel, from a copy: setuptools leaves its traces beside the sources.
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
cp -R pyproject.toml README.md causeway services protos lab "$sources/"
find "$sources" -name __pycache__ -prune -exec rm -rf {} +
$pip --disable-pip-version-check -q wheel --no-deps -w "$context/wheels" "$sources"

# All platform tags that Debian 12 (glibc 2.36) can run; pip does not derive the older ones from the newest.
platforms=
for tag in manylinux_2_36 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_26 \
    manylinux_2_24 manylinux_2_17 manylinux2014; do
    platforms="$platforms --platform ${tag}_$machine"
done
# shellcheck disable=SC2086 # a list of words
$pip --disable-pip-version-check -q download --only-binary :all: --python-version 3.11 --implementation cp $platforms \
    -c constraints.txt -d "$context/wheels" "$context"/wheels/causeway-*.whl

# By file, never by name: a package index has another project called causeway, with a higher version.
set -- "$context"/wheels/causeway-*.whl
test $# = 1 || { echo "deploy/wheels.sh: expected one wheel of causeway, got $*" >&2; exit 1; }
