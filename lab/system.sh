#!/bin/sh
# The Debian packages for compiling the data path (cc, the headers of Python), for the simulated networks (nft, ip, conntrack,
# ping, miniupnpd), for the bench's peers (haproxy, nebula, ssh, socat), for clients and servers of tests (curl, nc, dig, nginx,
# PostgreSQL and others) and for the pod (podman and what it stands on). Installs what is missing where that is permitted,
# else says what to install and goes on: what needs a missing tool then skips, or fails, on its own. Says nothing when all is there.
# Packages named as arguments are installed too.
set -u
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # Debian keeps nft, haproxy and sshd out of a user's PATH

missing=$*
# need COMMAND PACKAGE
need() {
    command -v "$1" >/dev/null 2>&1 && return
    case " $missing " in
        *" $2 "*) ;;
        *) missing="${missing:+$missing }$2" ;;
    esac
}
need cc gcc
ls /usr/include/python3.*/Python.h >/dev/null 2>&1 || missing="${missing:+$missing }python3-dev"
need nft nftables
need ip iproute2
need conntrack conntrack
need ping iputils-ping
need miniupnpd miniupnpd-nftables
need haproxy haproxy
need nebula nebula
need sshd openssh-server
need ssh openssh-client
need socat socat
need dig bind9-dnsutils
need curl curl
need nc netcat-openbsd
need podman podman
need runc runc
need catatonit catatonit
need debootstrap debootstrap
need curl curl
need nginx nginx-light
need h2load nghttp2-client
need pg_ctlcluster postgresql
need redis-server redis-server
need redis-benchmark redis-tools
need iperf3 iperf3
need dig bind9-dnsutils
need dnsmasq dnsmasq-base
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    root=none
elif [ "$(id -u)" = 0 ]; then
    root=
elif sudo -n true 2>/dev/null; then
    root="sudo -n"
else
    root=none
fi
if [ "$root" = none ]; then
    echo "missing for the compiled data path, simulated networks, bench, pod and clients: $missing (Debian: apt-get install $missing); going on without"
    exit 0
fi

echo "installing $missing"
# A daemon that starts on installation (ssh, haproxy, nebula, miniupnpd) is not wanted here: a temporary policy forbids it.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null && $root chmod +x $policy && made=yes
fi
log=$(mktemp) || exit 0
# shellcheck disable=SC2086 # lists of words
if ! { $root apt-get update -q && $root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } \
    >"$log" 2>&1; then
    echo "could not install them: $(grep -E '^E:' "$log" | head -n 1); going on without"
fi
rm -f "$log"
[ -n "$made" ] && $root rm -f $policy
exit 0
