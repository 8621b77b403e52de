"""Kinds of language models, one of each position scheme.

Between them heads that share keys, heads that do not, every norm and residual form.
"""

LANGUAGES = {
    "rotary": {},
    "partly rotary, parallel residual": {
        "rotary_fraction": 0.5, "parallel_residual": True, "norm": "layernorm", "norm_bias": True, "kv_heads": 4,
    },
    "alibi": {"positions": "alibi", "norm": "layernorm", "query_key_norm": True, "tied_head": True},
    "learnt": {"positions": "learnt", "position_offset": 2, "attention_bias": True, "activation": "relu"},
    "relative": {"positions": "relative"},
}
