#!/bin/sh
# Makes .venv and installs finode with the versions that constraints.txt pins: what `make setup` runs.
#
# 1. Stop at once if .venv/finode-setup says that this was done for the present pyproject.toml and constraints.txt.
# 2. Find a Python of a supported version, and see whether what pip cannot install is there: a C compiler, gmp.h and
#    Python.h (fastecdsa, which py-libp2p needs, has no Linux wheel), and Debian's python3-venv.
# 3. As root, install what lacks by apt-get; otherwise say the exact command and fail.
# 4. torch first, alone, so that it can come from an index of its own; then the rest, built with the setuptools just
#    installed (no build isolation: nothing outside constraints.txt is downloaded); CrypTen last, without dependencies.
#
# Environment: PYTHON (the interpreter), TORCH_INDEX (a package index for torch), both optional.
set -eu

cd "$(dirname "$0")/.."
root=$(pwd)
venv=.venv
stamp=$venv/finode-setup
python=${PYTHON:-}
torch_index=${TORCH_INDEX:-}

say() { printf 'setup: %s\n' "$*"; }
fail() { # fail WHAT [REMEDY]...
    printf 'setup: %s\n' "$1" >&2
    shift
    [ $# = 0 ] || printf '%s\n' "$@" >&2
    exit 1
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# The folder is part of it, because an editable install does not follow a checkout that moves.
inputs=$(printf '%s\n' "$root" | cat - pyproject.toml constraints.txt | cksum)

torch_from=$torch_index
if [ -f "$stamp" ] && supported "$venv/bin/python"; then
    same_python=yes
    if [ -n "$python" ] && [ "$(version "$python")" != "$(version "$venv/bin/python")" ]; then
        same_python=no
    fi
    torch_was=$(sed -n 2p "$stamp")
    : "${torch_from:=$torch_was}" # without TORCH_INDEX, torch stays what it is
    if [ "$same_python" = yes ] && [ "$(sed -n 1p "$stamp")" = "$inputs" ] && [ "$torch_from" = "$torch_was" ]; then
        exit 0
    fi
fi

if [ -n "$python" ]; then
    command -v "$python" >/dev/null || fail "PYTHON=$python: there is no such program"
    is=$(version "$python") || is=''
    supported "$python" ||
        fail "PYTHON=$python is not Python 3.11, 3.12 or 3.13${is:+ but $is}"
else
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "finode needs Python 3.11, 3.12 or 3.13, and none is on the PATH" \
        "Install one, or name it: make setup PYTHON=/path/to/python3.11"
fi

compiles() { # compiles LIBRARY HEADER [FLAG]...: whether a program with this header builds
    library=$1 header=$2
    shift 2
    printf '#include <%s>\nint main(void) { return 0; }\n' "$header" |
        "${CC:-cc}" "$@" -x c -o /dev/null - $library 2>/dev/null
}
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

find_missing() { # sets `missing` (for a person) and `packages` (for apt-get)
    missing='' packages=''
    if ! command -v "${CC:-cc}" >/dev/null; then
        missing="$missing, a C compiler (${CC:-cc})"
        packages="$packages gcc libc6-dev"
        set -- /usr/include/gmp.h /usr/include/*/gmp.h /usr/local/include/gmp.h
        gmp=no
        for file in "$@"; do [ ! -f "$file" ] || gmp=yes; done
    elif ! compiles '' stdlib.h; then
        missing="$missing, the C library's headers"
        packages="$packages libc6-dev"
        gmp=no
    else
        gmp=no
        ! compiles -lgmp gmp.h || gmp=yes
    fi
    if [ "$gmp" = no ]; then
        missing="$missing, gmp.h"
        packages="$packages libgmp-dev"
    fi
    if [ ! -f "$include/Python.h" ]; then
        missing="$missing, Python.h in $include"
        packages="$packages python$(version "$python")-dev"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing="$missing, the venv module of $python"
        packages="$packages python$(version "$python")-venv"
    fi
    missing=${missing#, } packages=${packages# }
}

find_missing
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null ||
        fail "this machine lacks $missing" "Install that, then run make again (Debian calls it: $packages)"
    if [ "$(id -u)" != 0 ]; then
        fail "this machine lacks $missing" "Run this, then make again:" "" \
            "    sudo apt-get update && sudo apt-get install -y $packages" ""
    fi
    say "this machine lacks $missing: installing $packages"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || say "apt-get update failed; trying with the lists that are here"
    # shellcheck disable=SC2086  # a list of names
    apt-get install -y -qq --no-install-recommends $packages >/dev/null || fail "apt-get could not install $packages"
    find_missing
    [ -z "$missing" ] || fail "apt-get installed its packages, but this is still not found: $missing" \
        "If it is about Python, $python may not be Debian's own: try make setup PYTHON=/usr/bin/python3"
fi

if ! supported "$venv/bin/python" || [ "$(version "$venv/bin/python")" != "$(version "$python")" ] ||
    ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    torch_was=''
fi

pip() { "$venv/bin/python" -m pip "$@"; }
pip_install() { pip install --disable-pip-version-check --no-input -c constraints.txt "$@"; }

rm -f "$stamp"
say "installing dependencies; the first time this takes a few minutes"
pip_install -q setuptools wheel
if [ -n "$torch_from" ]; then
    # Its dependencies come with the rest, from the ordinary index, in the versions that constraints.txt names.
    reinstall=''
    [ "$torch_from" = "${torch_was:-}" ] || reinstall=--force-reinstall
    pip_install $reinstall --no-deps --index-url "$torch_from" torch
else
    pip_install torch
fi
pip_install -q --no-build-isolation -e '.[bench,demo,dev]'
# py-libp2p brings trio-typing, whose stubs of an old trio would hide trio's own types from mypy.
rm -rf "$venv"/lib/python3.*/site-packages/trio-stubs
# CrypTen, which the engine of that name runs: without what its metadata asks for, of which one package is dead and the
# rest is not needed. So `pip check` has something to say of it every time.
pip_install -q --no-deps crypten
misfits=$(pip check --disable-pip-version-check | sed -e '/^crypten /d' -e '/^No broken requirements/d')
[ -z "$misfits" ] ||
    fail "the installed packages do not fit together: $misfits" "Remove $venv and run make again"
printf '%s\n%s\n' "$inputs" "$torch_from" >"$stamp"
say "done: $venv/bin/finode --help"
