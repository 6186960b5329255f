#!/bin/sh
# install-packages.sh APK_PACKAGES -- APT_PACKAGES
# Installs with whichever package manager the base image has, and leaves no list, cache or manual behind.
set -eu

apk_packages=
while [ "$1" != -- ]; do
    apk_packages="$apk_packages $1"
    shift
done
shift

ca_bundle=/run/secrets/ca_bundle

# The package names are split on purpose.
# shellcheck disable=SC2086
if command -v apk >/dev/null 2>&1; then
    if [ -s "$ca_bundle" ]; then
        export SSL_CA_CERT_FILE="$ca_bundle"
    fi
    apk add --no-cache $apk_packages
elif command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    set -- --yes --no-install-recommends "$@"
    if [ -s "$ca_bundle" ]; then
        set -- --option "Acquire::https::CaInfo=$ca_bundle" "$@"
        apt-get --option "Acquire::https::CaInfo=$ca_bundle" update
    else
        apt-get update
    fi
    apt-get install "$@"
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log \
        /usr/share/doc/* /usr/share/man/* /usr/share/info/*
else
    echo "install-packages.sh: the base image has neither apk nor apt-get; use an Alpine or Debian base" >&2
    exit 1
fi
