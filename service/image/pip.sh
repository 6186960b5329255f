#!/bin/sh
# pip.sh ARGUMENTS: pip with the build's optional secrets (an extra CA bundle, a package index), when given.
set -eu

if [ -s /run/secrets/ca_bundle ]; then
    export PIP_CERT=/run/secrets/ca_bundle
fi
if [ -s /run/secrets/pip_index ]; then
    PIP_INDEX_URL=$(cat /run/secrets/pip_index)
    export PIP_INDEX_URL
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CACHE_DIR=/var/cache/pip
exec python3 -m pip "$@"
