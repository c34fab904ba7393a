#!/bin/sh
# Sets up what `make demo` and `make test` need, and does nothing when it is there:
#
#   .venv      a virtual environment with the dependencies, the developers' tools, and
#              what the examples need (pyproject.toml)
#   RabbitMQ   from the system's packages, when no rabbitmq-server is found. It is installed without
#              being started, now or at boot; a broker that runs is left alone.
#   Chromium   from the system's packages, only with the argument `chromium` (`make browser`)
#
# PYTHON names the interpreter (python3). KUYRUK_TEST_RABBITMQ names another RabbitMQ than the
# system's, KUYRUK_TEST_URL a running broker; with it no RabbitMQ is installed.
#
# Uses apt-get where there is one, through sudo when not root. What it can't install it names, with
# the command that would, and exits with 1.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
POLICY=/usr/sbin/policy-rc.d # Debian: its exit code 101 keeps packages from starting services
KEPT=$POLICY.kept-by-kuyruk

say() { printf 'setup: %s\n' "$*" >&2; }

# missing WHAT HOW: ends the set-up.
missing() {
    say "$1"
    say "To install it: $2"
    exit 1
}

# --- Packages ----------------------------------------------------------------

# as_root COMMAND...: only after can_install.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

can_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] && return 0
    command -v sudo >/dev/null || return 1
    # Ask for a password only where someone can answer.
    if [ -t 0 ]; then sudo -v; else sudo -n true 2>/dev/null; fi
}

restore_policy() {
    if [ -e "$KEPT" ] || [ -L "$KEPT" ]; then
        as_root mv -f "$KEPT" "$POLICY"
    else
        as_root rm -f "$POLICY"
    fi
}

# apt_install PACKAGE...: returns non-zero when that fails. Starts no service.
apt_install() {
    say "installing $* with apt-get"
    # One that an interrupted set-up left behind is the original.
    if [ ! -e "$KEPT" ] && [ ! -L "$KEPT" ] && { [ -e "$POLICY" ] || [ -L "$POLICY" ]; }; then
        as_root mv "$POLICY" "$KEPT"
    fi
    trap restore_policy EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
    failed=0
    as_root apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2 || failed=1
    restore_policy
    trap - EXIT HUP INT TERM
    return $failed
}

# --- Python ------------------------------------------------------------------

has_python() { "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

has_venv() { "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }

check_python() {
    has_python || missing "Python 3.11 or newer is missing: '$PYTHON' isn't one." \
        "as root, apt-get install python3 (Debian 12 or newer), or set PYTHON to an interpreter that is"
    has_venv && return 0
    # Debian packages ensurepip apart, for its own Python only.
    if can_install; then apt_install python3-venv || true; fi
    has_venv || missing "the Python modules venv and ensurepip are missing from '$PYTHON'." \
        "as root, apt-get install python3-venv (for Debian's own Python)"
}

requirements() {
    "$PYTHON" - <<'END'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["dev"], *extras["examples"], sep="\n")
END
}

# What .venv was made from: of these, a change makes it anew.
fingerprint() {
    pwd
    "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)'
    cat tools/setup.sh
    requirements
}

make_venv() {
    stamp=.venv/set-up-from
    wanted=$(fingerprint)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null
    then
        return 0
    fi
    say "making .venv with $("$PYTHON" --version)"
    rm -rf .venv
    "$PYTHON" -m venv .venv
    requirements >.venv/requirements.txt
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -r .venv/requirements.txt >&2
    then
        missing "pip could not install these into .venv: $(tr '\n' ' ' <.venv/requirements.txt)" \
            "make the package index reachable (see pip's message above), and run this again"
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

# --- RabbitMQ ----------------------------------------------------------------

find_rabbitmq() { "$PYTHON" tools/rabbitmq_node.py --which; }

check_rabbitmq() {
    [ -n "${KUYRUK_TEST_URL:-}" ] && return 0
    find_rabbitmq >/dev/null 2>&1 && return 0
    if [ -z "${KUYRUK_TEST_RABBITMQ:-}" ] && can_install && apt_install rabbitmq-server; then
        # Nor is it to start with the machine: nobody asked for a broker, only for its programs.
        if command -v systemctl >/dev/null; then
            as_root systemctl disable --quiet rabbitmq-server 2>/dev/null || true
        fi
    fi
    find_rabbitmq >/dev/null || missing "RabbitMQ's server is missing." \
        "as root, apt-get install rabbitmq-server (Debian, Ubuntu), or brew install rabbitmq (macOS)"
}

# --- Chromium, for `make browser` only -----------------------------------------

find_chromium() { command -v chromium || command -v google-chrome; }

check_chromium() {
    find_chromium >/dev/null && return 0
    if can_install; then apt_install chromium || true; fi
    find_chromium >/dev/null || missing "Chromium is missing." \
        "as root, apt-get install chromium (Debian)"
}

check_python
make_venv
check_rabbitmq
if [ "${1:-}" = chromium ]; then check_chromium; fi
