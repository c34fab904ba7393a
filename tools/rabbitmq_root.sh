#!/bin/sh
# Makes a folder that holds another Debian with its RabbitMQ, to test with, and does nothing when it
# is there:
#
#   sh tools/rabbitmq_root.sh FOLDER [SUITE]
#   KUYRUK_TEST_RABBITMQ=FOLDER .venv/bin/python -m pytest
#
# SUITE is trixie for RabbitMQ 4.0, sid (the default) for the newest that Debian has (4.3 in 2026).
# Needs root (for chroot and for mounts, which end with it), debootstrap and 700 MB, and takes two
# minutes. Nothing in FOLDER is started, and nothing outside of it is changed. An interrupted run
# begins anew. To remove it: rm -r FOLDER.
#
# MIRROR names the Debian mirror; else the one that apt uses here is taken.
set -eu

say() { printf 'rabbitmq_root: %s\n' "$*" >&2; }

fail() {
    say "$1"
    exit 1
}

[ $# -ge 1 ] && [ $# -le 2 ] || fail "usage: sh tools/rabbitmq_root.sh FOLDER [SUITE]"
SUITE=${2:-sid}
case $1 in
/*) ROOT=$1 ;;
*) ROOT=$(pwd)/$1 ;;
esac
SERVER=usr/lib/rabbitmq/bin/rabbitmq-server
MARK=$ROOT/.made-by-kuyruk # empty while the folder is half made

# mirror: of Debian, as apt has it here, in either format of its sources.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
        /etc/apt/sources.list.d/*.sources 2>/dev/null |
        sed -nE 's/^(deb|URIs:)( +\[[^]]*\])? +([^ ]+\/debian\/?)( .*)?$/\3/p' | head -n 1
}

# $0: the root, the rest: a command in it, which keeps its process id. Ends with the mounts that it
# makes.
# shellcheck disable=SC2016 # the inner shell is to expand these
ENTER='for each in proc dev tmp; do mount --rbind "/$each" "$0/$each" || exit; done; exec chroot "$0" "$@"'

# inside COMMAND...: in the root, with /proc, /dev and /tmp mounted for as long as it takes.
inside() {
    unshare --mount --propagation private sh -c "$ENTER" "$ROOT" env \
        DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" </dev/null >&2
}

# wrap: scripts that run RabbitMQ's own inside of the root, for tools/rabbitmq_node.py. Both sides
# see the same /tmp.
wrap() {
    for name in rabbitmq-server rabbitmqctl; do
        printf "#!/bin/sh\nexec unshare --mount --propagation private sh -c '%s' '%s' '%s' \"\$@\"\n" \
            "$ENTER" "$ROOT" "/usr/lib/rabbitmq/bin/$name" >"$ROOT/$name"
        chmod 755 "$ROOT/$name"
    done
}

if [ -f "$ROOT/$SERVER" ] && { [ -s "$MARK" ] || [ ! -e "$MARK" ]; }; then
    say "$ROOT has RabbitMQ already: $(cat "$MARK" 2>/dev/null || echo 'made by someone else')"
    wrap
    exit 0
fi
if [ -e "$ROOT" ] && [ ! -e "$MARK" ] && [ -n "$(ls -A "$ROOT")" ]; then
    fail "$ROOT is there, and wasn't made by this: name another folder"
fi
[ "$(id -u)" = 0 ] || fail "this needs root (chroot, mount): run it as root, or with sudo"
for command in debootstrap unshare chroot; do
    command -v "$command" >/dev/null || fail "$command is missing: apt-get install debootstrap util-linux"
done
MIRROR=${MIRROR:-$(mirror)}
[ -n "$MIRROR" ] || fail "apt has no Debian mirror here: name one, MIRROR=http://deb.debian.org/debian"

if [ ! -f "$ROOT/etc/debian_version" ] || [ -d "$ROOT/debootstrap" ]; then
    say "Debian $SUITE from $MIRROR into $ROOT"
    rm -rf --one-file-system "$ROOT" # what an interrupted run has left
    mkdir -p "$ROOT"
    : >"$MARK"
    unshare --mount --propagation private debootstrap --variant=minbase "$SUITE" "$ROOT" "$MIRROR" >&2 ||
        fail "debootstrap failed: see above, and $ROOT/debootstrap/debootstrap.log"
fi
say "RabbitMQ into $ROOT"
printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d" # packages start no service
chmod 755 "$ROOT/usr/sbin/policy-rc.d"
# A mirror that is a copy may have lists that have expired.
inside apt-get -o Acquire::Check-Valid-Until=false update -qq || fail "apt-get update failed in $ROOT: see above"
inside apt-get install -y -qq --no-install-recommends rabbitmq-server ||
    fail "apt-get install failed in $ROOT: see above"
[ -f "$ROOT/$SERVER" ] || fail "there is no $ROOT/$SERVER after all"
wrap
chroot "$ROOT" dpkg-query --show --showformat='${Version}\n' rabbitmq-server >"$MARK"
say "$ROOT has RabbitMQ $(cat "$MARK")"
