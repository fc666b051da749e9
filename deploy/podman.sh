#!/bin/sh
# deploy/podman.sh COMMAND: the pod of deploy/pod.yaml on this machine, under podman, without a registry.
#   up             base image by debootstrap, wheels, four images, pod; waits until all four services are healthy
#   check          health of all four as seen from each container, their user and capabilities, nftables, `causeway status`
#   publish FILE   puts FILE in the place of the ConfigMap's services.yaml, as kubectl would do it in a cluster
#   status, logs   of the running pod
#   psk            as the containers see it (podman 4.3 mounts a Secret without decoding its base64)
#   down           ends the pod and removes its images; keeps the downloaded base
# Everything lives in build/pod (images and containers too: podman's own storage is not touched). Doing any of it
# twice does no harm. Needs root, for debootstrap: apt-get install podman runc catatonit debootstrap
# Exit code 77: this machine cannot do it (says why).
set -eu
cd "$(dirname "$0")/.."
work=$PWD/build/pod
version=0.1.0
services="discovery relay tunnel proxy"
packages=python3,python3-venv,nftables
# The trial keeps to the loopback interface, so that it meets nothing else on this machine.
address=${POD_ADDRESS:-127.63.0.1}

fail() {
    echo "deploy/podman.sh: $*" >&2
    exit 1
}

unable() {
    echo "deploy/podman.sh: $*" >&2
    exit 77
}

export CONTAINERS_CONF="$work/containers.conf"
pod() {
    podman --root "$work/storage" --runroot "$work/runroot" --tmpdir "$work/tmp" "$@"
}

prepare() {
    test "$(id -u)" = 0 || unable "needs root (debootstrap, and files of other users in the images)"
    for tool in podman runc catatonit debootstrap; do
        PATH=$PATH:/usr/sbin:/usr/libexec/podman command -v $tool >/dev/null || unable "$tool is missing: apt-get install podman runc catatonit debootstrap"
    done
    mkdir -p "$work"
    # No systemd in sight: cgroups by file, and limits that any host grants.
    cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[network]
network_config_dir = "$work/networks"
END
}

# Where FROM's image cannot be pulled: the same distribution, made here, under the same name.
base() {
    pod image exists debian:bookworm-slim && return
    if ! test -s "$work/base.tar" || test "$(cat "$work/base.packages" 2>/dev/null)" != "$packages"; then
        echo "base image by debootstrap"
        rm -rf "$work/base"
        debootstrap --variant=minbase --include="$packages" bookworm "$work/base" >"$work/debootstrap.log" 2>&1 ||
            unable "debootstrap: $(tail -n 1 "$work/debootstrap.log")"
        rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
        tar -C "$work/base" -cf "$work/base.part" .
        mv "$work/base.part" "$work/base.tar"
        echo "$packages" >"$work/base.packages"
        rm -rf "$work/base"
    fi
    pod import --quiet --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        "$work/base.tar" debian:bookworm-slim >/dev/null
}

image() { # image SERVICE
    echo "image causeway-$1:$version"
    pod build --quiet --pull=never --network none --target "$1" -t "causeway-$1:$version" "$work/context" \
        >"$work/build-$1.log" 2>&1 || fail "build of $1: $(tail -n 3 "$work/build-$1.log" | tr '\n' ' ')"
}

# All that is common to the four is built with the first, so the others may be built beside each other.
images() {
    image discovery
    building=
    for service in relay tunnel proxy; do
        image $service &
        building="$building $!"
    done
    for process in $building; do wait "$process"; done
}

# pod.yaml as it is, but on the loopback and with a secret made for this trial.
manifest() {
    cat <<END
apiVersion: v1
kind: Secret
metadata:
  name: causeway-psk
data:
  psk: $(od -An -N32 -tx1 /dev/urandom | tr -d ' \n' | base64 -w0)
---
END
    sed "s/^    listenAddress: .*/    listenAddress: $address/" deploy/pod.yaml
}

inside() { # inside SERVICE COMMAND…
    container=causeway-$1
    shift
    pod exec "$container" "$@"
}

up() {
    prepare
    stop
    echo "wheels"
    sh deploy/wheels.sh "$work/context" >"$work/wheels.log" 2>&1 &
    wheels=$!
    trap 'kill $wheels 2>/dev/null || :' EXIT
    base
    trap - EXIT
    wait $wheels || fail "wheels: $(tail -n 1 "$work/wheels.log")"
    images
    (umask 077 && manifest >"$work/pod.yaml")
    echo "pod"
    pod play kube --quiet "$work/pod.yaml" >"$work/play.log" 2>&1 || fail "play kube: $(tail -n 3 "$work/play.log" | tr '\n' ' ')"
    for service in $services; do
        left=60
        until inside "$service" causeway-healthy "$service" 2>"$work/health.log"; do
            left=$((left - 1))
            test $left -gt 0 || {
                pod logs --tail 5 "causeway-$service" >&2 || true
                fail "$service is not healthy after 60 tries: $(cat "$work/health.log")"
            }
            sleep 1
        done
    done
    echo "four services are healthy"
}

check() {
    for service in $services; do
        # Every container sees the sockets of all four.
        for other in $services; do
            inside "$service" causeway-healthy "$other" || fail "$other is not healthy as seen from the container of $service"
        done
        capabilities=0000000000000000
        test "$service" != proxy || capabilities=0000000000001000 # CAP_NET_ADMIN
        rights=$(inside "$service" grep -E '^(Uid|CapPrm|CapEff)' /proc/1/status | tr -s '\t\n' ' ')
        expected="Uid: 10001 10001 10001 10001 CapPrm: $capabilities CapEff: $capabilities "
        test "$rights" = "$expected" || fail "$service runs with '$rights', expected '$expected'"
    done
    inside proxy causeway proxy --cleanup
    inside proxy causeway status --run-dir /run/causeway
}

publish() {
    folder=$(pod volume inspect --format '{{.Mountpoint}}' causeway-config)
    # In place, for containers that mount the file itself would not see another one.
    cat "$1" >"$folder/services.yaml"
}

stop() {
    pod pod rm --force --time 15 causeway >/dev/null 2>&1 || true
    pod volume rm --force causeway-config causeway-psk run state >/dev/null 2>&1 || true
    pod secret rm causeway-psk >/dev/null 2>&1 || true
}

down() {
    test -d "$work" || return 0
    prepare
    stop
    # Not `podman system reset`, which reaches beyond --root. Nothing of ours is mounted any more after these.
    pod rmi --all --force >/dev/null 2>&1 || true
    pod volume rm --all --force >/dev/null 2>&1 || true
    umount "$work/storage/overlay" 2>/dev/null || true
    ! grep -q " $work/" /proc/self/mounts || fail "still mounted: $(grep -m 1 -o " $work/[^ ]*" /proc/self/mounts)"
    rm -rf "$work/storage" "$work/runroot" "$work/tmp" "$work/networks" "$work/context" "$work/pod.yaml"
}

case ${1:-} in
    up | check | down) "$1" ;;
    publish) publish "${2:?usage: deploy/podman.sh publish FILE}" ;;
    psk) inside tunnel cat /etc/causeway-psk/psk ;;
    status) inside proxy causeway status --run-dir /run/causeway -o json ;;
    logs) for service in $services; do pod logs "causeway-$service" 2>&1 | sed "s/^/$service: /"; done ;;
    *) fail "'${1:-}' is not known; expected up, check, publish, status, logs, psk or down" ;;
esac
