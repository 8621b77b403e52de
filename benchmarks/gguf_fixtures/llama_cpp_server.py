"""llama.cpp's server on a GGUF file, for `write_gguf.py`: it prints its address, and ends when its input does.

    python -m benchmarks.gguf_fixtures.llama_cpp_server FILE PORT
"""

from __future__ import annotations

import os
import sys

import xllamacpp

if __name__ == "__main__":
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.port = sys.argv[1], 128, int(sys.argv[2])
    server = xllamacpp.Server(params)  # it answers while it is referred to
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)
