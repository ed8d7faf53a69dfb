#!/usr/bin/env bash
# Makes the base image that the Dockerfile names, where no image registry can be reached:
#   tests/docker/base-image.sh NAME
# Debian's own Python by debootstrap, with this machine's certificates so that pip works as it does
# here. Needs root, debootstrap and a running Docker engine.
set -euo pipefail
name="${1:?usage: base-image.sh NAME}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
root="$folder/root"
suite="$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")"

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$root" \
    >"$folder/log" 2>&1 || { tail -20 "$folder/log" >&2; exit 1; }
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/{doc,man,locale,info}
certificates="${PIP_CERT:-${SSL_CERT_FILE:-}}"
inside=/etc/ssl/certs/ca-certificates.crt
changes=(-c "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" -c "CMD [\"python3\"]")
if [ -n "$certificates" ]; then
    install -m 0644 "$certificates" "$root$inside"
    changes+=(-c "ENV PIP_CERT=$inside SSL_CERT_FILE=$inside")
fi
tar -C "$root" -c . | docker import "${changes[@]}" - "$name" >/dev/null
docker image inspect --format "$name {{.Size}} bytes" "$name"
