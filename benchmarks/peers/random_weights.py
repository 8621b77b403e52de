"""Values for every tensor of a model from a seed, the tensor's name and its shape alone.

The peers' environments and the test suite make the same files from this rule, so no weights are stored. It uses raw
bits of PCG64 and float32 arithmetic only: the result is the same to the bit on any machine and with any numpy.

A name is the one in the file that a tensor comes from, whoever's naming that is.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np

GATE = re.compile(r"(^|[._])(attn|ff)_gate$")
# The rows are vectors that are looked up, or compared with the final hidden state.
TABLE = re.compile(r"(wte|embed_in|embed_out|embed_tokens|token_embedding|lm_head)\.weight$|(^|\.)latents$")
# Greedy decoding with random weights tends to repeat one token. Against that the next token has to depend on the last
# ones: the language model's own matrices are larger than those around it, and the gated feed-forward adds less. What
# the gated attention adds is larger again, or the pictures would drown.
AROUND = re.compile(r"perceiver|gated_cross_attn|visual|vision_model|text_")
GATED_FF = re.compile(r"gated_cross_attn.*\.ff\.3\.")
GATED_ATTENTION = re.compile(r"gated_cross_attn.*\.(to_kv|to_out)\.")
POSITIONS = re.compile(r"embed_positions|position_embedding|positional_embedding")


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """``count`` float32 in [-1, 1), multiples of 2**-23, from the seed and the name."""
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    return ((bits >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2**-23)


def offset_and_scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The tensor is offset + scale * uniform. The choices keep activations near 1 and all parts in play."""
    if GATE.search(name):
        return 0.5, 0.3  # 0, where training starts, would hide the layer
    if POSITIONS.search(name):
        return 0.0, 0.5
    if TABLE.search(name):
        return 0.0, 1.0
    if len(shape) < 2:
        if name.endswith("weight"):
            return 1.0, 0.2  # gain of a norm
        return 0.0, 0.2 if name.endswith("bias") else 1.0
    if GATED_ATTENTION.search(name):
        gain = 1.5
    elif GATED_FF.search(name):
        gain = 0.5
    else:
        gain = 1.0 if AROUND.search(name) else 3.0
    return 0.0, gain * math.sqrt(3.0 / math.prod(shape[1:]))  # 1/3 is the variance of the uniform numbers


def random_tensor(seed: int, name: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """float32 of this shape; () gives one number."""
    shape = tuple(shape)
    offset, scale = offset_and_scale(name, shape)
    values = uniform(seed, name, math.prod(shape)).reshape(shape)
    return np.asarray(values * np.float32(scale) + np.float32(offset))  # an array for shape () too


def random_pixels(seed: int, index: int, size: int) -> np.ndarray:
    """float32 [3, size, size] in [-2, 2): picture ``index``, as it is after normalization."""
    return uniform(seed, f"pixels {index}", 3 * size * size).reshape(3, size, size) * np.float32(2)


def random_picture(seed: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3] of noise."""
    values = uniform(seed, f"picture {width}x{height}", height * width * 3)
    return ((values + np.float32(1)) * np.float32(128)).astype(np.uint8).reshape(height, width, 3)


def random_tokens(seed: int, name: str, count: int, below: int) -> list[int]:
    """``count`` token ids in [0, below)."""
    bits = np.random.PCG64([seed, zlib.crc32(f"tokens {name}".encode())]).random_raw(count)
    return [int(value) % below for value in bits >> np.uint64(32)]
