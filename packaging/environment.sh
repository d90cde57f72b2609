# Shared by packaging/demo and packaging/test: finds a Python and makes a virtual environment with it.
# Sourced by POSIX sh with `set -eu`; $here is the checkout.

say() { printf '%s\n' "$*" >&2; }

# find_python: sets $python to the first Python >= 3.11.
find_python() {
    for python in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            return
        fi
    done
    say "Portier needs Python 3.11 or newer, and finds none: install python3 (Debian 12, Ubuntu 24.04 and"
    say "newer have it), or name one: PYTHON=/path/to/python3 $0"
    exit 69
}

# make_environment DIR: a virtual environment in DIR; sets $venv. One that is there is used again. Only one
# made here is ever removed: when it was left half made, or its Python has changed.
make_environment() {
    venv=$1
    version=$("$python" -c 'import sys; print(sys.version)')
    made=$(cat "$venv/made-with" 2>/dev/null || true)
    if [ -e "$venv" ] && { [ -z "$made" ] || [ "$made" = "$version" ]; }; then
        if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            return
        fi
        if [ -z "$made" ]; then
            say "$venv is there and is no virtual environment with pip: remove it, or set it right"
            exit 73
        fi
    fi
    say "making an environment in $venv"
    rm -rf "$venv"
    mkdir -p "$venv"
    echo unfinished >"$venv/made-with"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    else
        rm -rf "$venv"
        minor=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        say "this Python cannot make virtual environments; on Debian and Ubuntu:"
        say "    sudo apt-get install python$minor-venv"
        exit 69
    fi
    printf '%s\n' "$version" >"$venv/made-with"
}
