#!/bin/sh
# compile-engine.sh SOURCE_ARCHIVE OUTPUT: compiles llama-server with every CPU level of this architecture.
# The right level is chosen when the engine starts, so one image serves a Celeron and a Xeon.
set -eu

archive=$1
output=$2
work=$(mktemp -d)

tar -xzf "$archive" -C "$work" --strip-components=1
cmake -S "$work/vendor/llama.cpp" -B "$work/build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_INSTALL_RPATH='$ORIGIN:$ORIGIN/../lib' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_SUBPROCESS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON

# A compiler for each CPU, as far as there is a GiB of memory for each: a small NAS would swap, or end them.
jobs=$(nproc)
gibibytes=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
[ "$gibibytes" -ge "$jobs" ] || jobs=$((gibibytes > 1 ? gibibytes : 1))
cmake --build "$work/build" --target llama-server --parallel "$jobs"

mkdir -p "$output"
cp "$work/build/bin/llama-server" "$output/"
find "$work/build/bin" -name 'lib*.so*' -exec cp -P {} "$output/" \;
find "$output" -type f -exec strip --strip-unneeded {} \;
rm -rf "$work"
