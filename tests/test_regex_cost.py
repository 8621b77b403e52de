"""Patterns of known tokenizers are taken, those that may never end are not."""

import pytest

from flamingo_rt.regex_cost import pattern_fault

SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD = r"[^\r\n\p{L}\p{N}]?"
KNOWN = {
    "GPT-2, GPT-NeoX, MPT, OPT": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": rf"{SHORT}|{WORD}\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "Qwen2": rf"{SHORT}|{WORD}\p{{L}}+|\p{{N}}|{REST}",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
              r"|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": rf"{WORD}{UPPER}*{LOWER}+{SHORT}?|{WORD}{UPPER}+{LOWER}*{SHORT}?|\p{{N}}{{1,3}}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": rf"{WORD}{UPPER}*{LOWER}+|{WORD}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+"
              r"|\s+(?!\S)|\s+",
    "DeepSeek-V3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                   r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "CJK of DeepSeek": "[一-龥\u3040-ゟ゠-ヿ]+",
    "BLOOM": " ?[^(\\s|[.,!?…。，、।۔،])]+",
    "Kimi": rf"[\p{{Han}}]+|{WORD}[\p{{Lu}}\p{{Lt}}&&[^\p{{Han}}]]*[\p{{Ll}}&&[^\p{{Han}}]]+{SHORT}?",
    "digits from the right": r"(?=(\d{3})+(?!\d))",
    "ALBERT": " {2,}",
    "CLIP": r"\s+",
}
NEVER_ENDING = [
    r"(a+)+$", r"(a+)+x", r"(\w*)*x", r"(?:a|a)*x", r"a*a*x", r".*x.*y", r"(?=(a+)+$)x", r"(?:a?){22}[xy]",
    r"(?:a|a|b){12}[xy]", "a?" * 30 + "b", r"a**b", r"(?i)a|(b*)*c", r"(?:\p{N}{1,3})+x", r"\w+\s*\w+x",
]
NOT_PLAIN = [
    r"(\w+)\1", r"(?<n>a)\k<n>", r"(?<n>a\g<n>*b)*", r"(?x)a", r"(?~a)", r"(?(1)a|b)", r"(*FAIL)", r"\Qa\E", "[]a]",
    "(a", "a)", "[a", "*a", "\\",
]
LONG = ["a" * 5001, "((a{1000}){1000}){1000}", "a{100000}", "(" * 40 + "a" + ")" * 40]


@pytest.mark.parametrize("name", KNOWN)
def test_the_patterns_of_known_tokenizers_are_taken(name):
    assert pattern_fault(KNOWN[name]) is None


@pytest.mark.parametrize("pattern", [*NEVER_ENDING, *NOT_PLAIN, *LONG], ids=lambda pattern: pattern[:30])
def test_a_pattern_that_may_never_end_or_is_not_understood_is_refused(pattern):
    assert pattern_fault(pattern)


def test_a_repeated_repeat_that_is_not_backtracked_into_is_accepted():
    assert pattern_fault(r"(?>(a+)+)b") is None
    assert pattern_fault(r"(a+)+") is None
