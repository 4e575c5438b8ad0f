#!/usr/bin/env bash
# Installs lipray, at the versions of constraints.txt, into a virtual environment: in the image, and on cluster machines.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: install.sh ENVIRONMENT SOURCE CONSTRAINTS [EXTRAS]

ENVIRONMENT  folder of the virtual environment; made if it is not there
SOURCE       a wheel of lipray, or its source tree
CONSTRAINTS  constraints.txt
EXTRAS       extras of lipray, such as onnx,s3

PYTHON       (variable) the interpreter to make it with, 3.11 or newer; default python3
TORCH_INDEX  (variable) an index of PyTorch wheels to look at besides pip's own: one for the CPU, or one for CUDA
CUDA         (variable) if not empty, fail unless the PyTorch that was found is one for CUDA
TEXT
    exit 2
}

[[ $# -ge 3 && $# -le 4 ]] || usage
environment=$1 source=$2 constraints=$3 extras=${4:-}
[[ -e $source ]] || { echo "error: $source is not there" >&2; exit 2; }
[[ -f $constraints ]] || { echo "error: $constraints is not there" >&2; exit 2; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $python is older than Python 3.11, or not there; name another in PYTHON" >&2; exit 2; }
[[ -x $environment/bin/python ]] || "$python" -m venv "$environment"

index=()
[[ -z ${TORCH_INDEX:-} ]] || index=(--extra-index-url "$TORCH_INDEX")
install=("$environment/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --constraint "$constraints")
# PyTorch first: of a version with and without a local part, such as +cpu, pip prefers the one with.
"${install[@]}" "${index[@]}" torch
"${install[@]}" "$source${extras:+[$extras]}"
"$environment/bin/python" -m pip --disable-pip-version-check check

cuda=$("$environment/bin/python" -c 'import torch; print(torch.version.cuda or "")')
if [[ -n ${CUDA:-} && -z $cuda ]]; then
    echo "error: CUDA was asked for, and the PyTorch that was found is for the CPU; name an index in TORCH_INDEX" >&2
    exit 1
fi
if [[ -z ${CUDA:-} && -n $cuda ]]; then
    echo "note: PyTorch comes with CUDA $cuda, several gigabytes; TORCH_INDEX can name an index of wheels for the CPU" >&2
fi
"$environment/bin/lipray" --version
