#!/usr/bin/env bash
# What `make docker-test` needs of the machine: a Docker engine, Compose, and the base image.
#   tests/docker/engine.sh start     installs and starts what is missing (Debian, root)
#   tests/docker/engine.sh stop      ends the engine, if start has started it
# Exit 3: no engine can be had here. A registry is not needed.
set -euo pipefail
cd "$(dirname "$0")/../.."
base="${ITB_BASE:-python:3.11-slim-bookworm}"
state="${TMPDIR:-/tmp}/itb-docker-engine"

say() { echo "docker-test: $*" >&2; }
no_engine() {
    say "NO DOCKER ENGINE CAN BE HAD HERE: $*"
    say "nothing of the containers was tested"
    exit 3
}
runs() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
has_compose() { docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1; }

install() {
    command -v apt-get >/dev/null || no_engine "please install: $*"
    [ "$(id -u)" -eq 0 ] || no_engine "installing $* needs root"
    say "installing $*"
    apt-get update -q >&2 || true
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2 \
        || no_engine "$* cannot be installed"
}

start_engine() {
    mkdir -p "$state"
    local mtu driver
    # Packets larger than this machine's own network takes would be lost.
    mtu="$(cat "/sys/class/net/$(ip route show default 2>/dev/null | awk '{print $5; exit}')/mtu" \
        2>/dev/null || echo 1500)"
    for driver in "" vfs; do
        say "starting the engine${driver:+ with storage driver $driver}"
        setsid nohup dockerd --mtu "$mtu" ${driver:+--storage-driver "$driver"} \
            >"$state/log" 2>&1 </dev/null &
        echo "$!" >"$state/pid"
        for _ in $(seq 60); do
            if runs; then return; fi
            if ! kill -0 "$(cat "$state/pid")" 2>/dev/null; then break; fi
            sleep 1
        done
        stop_engine
        tail -5 "$state/log" >&2
    done
    no_engine "dockerd does not start, see $state/log"
}

stop_engine() {
    [ -e "$state/pid" ] || return 0
    local pid
    pid="$(cat "$state/pid")"
    rm -f "$state/pid"
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 30); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 1
    done
}

case "${1:-start}" in
start)
    if ! runs; then
        command -v dockerd >/dev/null || install docker.io iptables iproute2
        [ "$(id -u)" -eq 0 ] || no_engine "none runs, and starting one needs root"
        start_engine
    fi
    has_compose || install docker-compose
    if ! docker image inspect "$base" >/dev/null 2>&1 \
        && ! timeout 60 docker pull -q "$base" >/dev/null 2>&1; then
        say "$base is on no registry that can be reached: it is made here"
        command -v debootstrap >/dev/null || install debootstrap
        tests/docker/base-image.sh "$base" >&2
    fi
    docker version --format 'docker-test: engine {{.Server.Version}}' >&2
    ;;
stop) stop_engine ;;
*) say "usage: engine.sh start|stop"; exit 2 ;;
esac
