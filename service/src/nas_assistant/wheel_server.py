# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The engine from the xllamacpp wheel, started with the same options as llama.cpp's own server.

So both builds of the engine are one thing to the supervisor: a command that serves HTTP on a Unix
socket.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import xllamacpp

_CACHE_TYPES = {
    "f16": xllamacpp.ggml_type.GGML_TYPE_F16,
    "q8_0": xllamacpp.ggml_type.GGML_TYPE_Q8_0,
}


_SPECULATION = {
    "none": xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NONE,
    "ngram-mod": xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_MOD,
}
_NGRAM = ("n_match", "n_min", "n_max")


def main() -> None:
    """Load the model, serve until a signal ends the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = xllamacpp.Server(_parameters(_options()))
    except RuntimeError as error:
        # llama.cpp has said more in the lines before.
        sys.exit(f"the engine refused the model: {error}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wheel_server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--api-key-file", required=True, type=Path)
    parser.add_argument("--chat-template", default="")
    parser.add_argument("--no-jinja", action="store_true")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--reranking", action="store_true")
    parser.add_argument("--spec-type", default="none", choices=_SPECULATION)
    for part in _NGRAM:
        parser.add_argument(f"--spec-ngram-mod-{part.replace('_', '-')}", type=int)
    parser.add_argument("--ubatch-size", type=int, default=0)
    for name in ("--cache-type-k", "--cache-type-v"):
        parser.add_argument(name, required=True, choices=_CACHE_TYPES)
    for name in (
        "--ctx-size",
        "--parallel",
        "--batch-size",
        "--threads",
        "--threads-http",
        "--cache-ram",
        "--verbosity",
    ):
        parser.add_argument(name, required=True, type=int)
    return parser.parse_args()


def _parameters(options: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.model_alias = {options.alias}
    parameters.hostnames = [options.host]
    parameters.api_keys = [options.api_key_file.read_text(encoding="ascii").strip()]
    parameters.chat_template = options.chat_template
    parameters.use_jinja = not options.no_jinja
    parameters.n_ctx = options.ctx_size
    parameters.n_parallel = options.parallel
    parameters.n_batch = options.batch_size
    parameters.embedding = options.embeddings or options.reranking
    if options.reranking:
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    parameters.speculative.types = [_SPECULATION[options.spec_type]]
    for part in _NGRAM:
        value = getattr(options, f"spec_ngram_mod_{part}")
        if value is not None:
            setattr(parameters.speculative.ngram_mod, part, value)
    if options.ubatch_size:
        parameters.n_ubatch = options.ubatch_size
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.n_threads_http = options.threads_http
    parameters.cache_ram_mib = options.cache_ram
    parameters.cache_type_k = _CACHE_TYPES[options.cache_type_k]
    parameters.cache_type_v = _CACHE_TYPES[options.cache_type_v]
    parameters.verbosity = options.verbosity
    # What llama-server is told by flags, see engine_process.py.
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.endpoint_metrics = True
    parameters.fit_params = False
    return parameters


if __name__ == "__main__":
    main()
