#!/bin/sh
# Makes every lock of the service again from its .in file: newest versions, all hashes, no index address.
set -eu
cd "$(dirname "$0")"
for name in requirements requirements-wheel requirements-source-backend tests/clients; do
    uv pip compile --quiet --upgrade --universal --python-version 3.11 --only-binary :all: \
        --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command ./lock.sh \
        "$name.in" --output-file "$name.txt"
done
# This one is wanted as source, and what it would install with is not.
uv pip compile --quiet --upgrade --no-deps --no-binary :all: \
    --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command ./lock.sh \
    requirements-source.in --output-file requirements-source.txt
