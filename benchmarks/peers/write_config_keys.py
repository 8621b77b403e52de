"""The keys that the transformers library knows in a configuration of each family: ``tests/fixtures/config_keys.json``,
by version of the library. A test goes through all of them.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.write_config_keys

It adds what the installed version knows, and needs nothing but the library: run it with old and new ones.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import transformers
from transformers import CLIPImageProcessor, CLIPVisionConfig, GPTNeoXConfig, LlamaConfig, MptConfig, OPTConfig

OUT = Path(__file__).parents[2] / "tests" / "fixtures" / "config_keys.json"
CONFIGS = {
    "llama": LlamaConfig, "gpt_neox": GPTNeoXConfig, "opt": OPTConfig, "mpt": MptConfig, "clip": CLIPVisionConfig,
}


def known(configuration: type) -> list[str]:
    """Keys that a configuration writes, and parameters that it takes."""
    written = configuration().to_dict()
    given = inspect.signature(configuration.__init__).parameters
    return sorted({*written, *(name for name in given if name not in ("self", "kwargs"))})


def main() -> None:
    keys = {name: known(configuration) for name, configuration in CONFIGS.items()}
    keys["mpt.attn_config"] = known(type(MptConfig().attn_config))
    keys["CLIPImageProcessor"] = sorted(CLIPImageProcessor().to_dict())
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps({**before, transformers.__version__: keys}, indent=1) + "\n")
    print(f"wrote {OUT.name}: {', '.join(f'{name} {len(found)}' for name, found in keys.items())}")


if __name__ == "__main__":
    main()
