#!/bin/sh
# The container's start script: checks that its configuration is there, then hands over to Python, which checks the
# rest. Commands: serve (default), check, healthcheck, keys, limits, tune, version.
set -eu

config=/app/config.ini

# One JSON line, as everything else the container logs; 78 is EX_CONFIG of sysexits.h: restarting does not help.
refuse() {
    printf '{"time":"%s","level":"error","event":"start_refused","message":"%s"}\n' \
        "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1"
    exit 78
}

case "${1:-serve}" in
keys | limits | version) ;;
*)
    if [ ! -e "$config" ]; then
        refuse "$config does not exist: mount the configuration there, read-only (README.md has a table of its keys)"
    elif [ ! -f "$config" ]; then
        refuse "$config is not a file: Docker makes a folder there when the file to mount is missing on the host"
    elif [ ! -r "$config" ]; then
        refuse "$config cannot be read by uid $(id -u) gid $(id -g): on the host, let that user or group read it"
    fi
    ;;
esac

# The place among those that read disks, from 0 to 7. All that is started from here on inherits it.
if [ "${1:-serve}" = serve ] && [ -n "${IO_PRIORITY:-}" ]; then
    exec ionice -t -c 2 -n "$IO_PRIORITY" /opt/venv/bin/python -m nas_assistant "$@"
fi
exec /opt/venv/bin/python -m nas_assistant "$@"
