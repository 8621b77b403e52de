"""Tokens of captions as COCO's evaluation makes them, for scores that can be compared with published ones.

COCO's evaluation (``pycocoevalcap``) runs the PTBTokenizer of Stanford CoreNLP 3.4.1, a Java program, and drops listed
punctuation from its tokens. The rules that matter for captions are here: of the 25,014 captions of COCO's val2017 and
40,960 lines of Flickr8k's captions, all get the program's tokens. It is not followed for addresses of e-mail and the
web, smileys, HTML entities, runs of a symbol such as "***", and "y'all" and other rare clippings. The program reads
captions as one text: a single letter at the end of one ("plan B.") loses its period here, as it does there when the
next caption begins with "A", "The" and the like.
"""

from __future__ import annotations

import re

ABBREVIATIONS = """
    mr mrs ms dr drs prof profs st ave blvd rd jr sr inc co corp ltd vs etc mt ft gen gov sen rep reps capt sgt lt
    col jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ky calif fla ga ind kan mich
    minn mo mont neb nev okla tenn va vt wis wyo conn ariz ala al colo adm cpl maj pvt rev hon messrs pres supt dept
    est assn bros cie cos plc ph p tel ext bldg ct mfg intl natl univ asst atty cmdr det insp mme mlle rt e cf alex
    wm jos md brig
"""
# States that are words as well.
CAPITAL_ABBREVIATIONS = "Ill Mass Miss Ore Pa Tex Wash Del Ark La"
# Before these a single letter has no period of its own: they begin a sentence.
SENTENCE_BEGINNINGS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms.
    Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet
    You
"""
ASCII = str.maketrans({
    "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'",
    "\u2013": " -- ", "\u2014": " -- ", "\u2026": " ... ", "\u00ad": "",
    "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "£": "#", "€": "$", "¢": " cents ",
})
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
TWO_WORDS = {word: (word[:3], word[3:]) for word in ("cannot", "gonna", "gotta", "wanna", "gimme", "lemme")}
PUNCTUATION = frozenset("'\"`.?!,:;-")


def _any_of(words: str) -> str:
    return "|".join(map(re.escape, words.split()))


LETTER, SIGN = r"[^\W\d_]", r"[^\W_]"  # a letter; a letter or digit
# A word, with an apostrophe in front (o'clock, d'oeuvre) or between vowels (ma'am).
WORD = rf"(?:(?i:[dlo]'(?!(?:s|m|d|re|ve|ll)\b)|c'(?=mon)|s'(?=more)))?{SIGN}+(?:(?i:(?<=[aeiou])'(?=[aeiou])){SIGN}+)?"
TOKEN = re.compile(
    rf"""
    '(?:n'|\d0s\b|(?i:em|til|cause|n|s|m|d|re|ve|ll)\b|(?i:t)(?=(?i:is|was)\b))  # 'n', '90s, 'em, 's, 't|is
    | (?i:{LETTER}*?(?=n't\b)|n't\b)                                             # is|n't
    | (?:(?i:ph)|{LETTER})(?:\.{LETTER})+\.(?!{SIGN})(?:-{SIGN}+)*               # p.m., U.S.-based
    | {LETTER}+(?:\.{LETTER}+)+                                                  # street.the: a missing space
    | (?:(?i:{_any_of(ABBREVIATIONS)})|{_any_of(CAPITAL_ABBREVIATIONS)})\.
    | {LETTER}\.(?!\.|\s*$|\s+(?:{_any_of(SENTENCE_BEGINNINGS)})(?:\s|$))        # J. Smith
    | (?i:no\.)(?=\s*\d)                                                         # no. 5
    | [A-Z]+(?:&[A-Z]+)+                                                         # AT&T
    | \d*(?:[.,:]\d+)+(?:-{SIGN}+)*                                              # 3,000, 5:30, 2.0-inch
    | {WORD}(?:[-_/]{WORD})*                                                     # t-shirt, and/or, 4-wheeler
    | [\#@]{LETTER}+
    | </?\w+>
    | [!?]+                                                                      # two or more are no punctuation
    | --+
    | [_!-\uffff]
    """,
    re.VERBOSE,
)


def caption_tokens(caption: str) -> list[str]:
    """Return the tokens of ``caption`` in lower case, without punctuation.

    Contractions are two tokens ("is", "n't"; "dog", "'s"), words with hyphens one, brackets "-lrb-" and so on, which
    the original means to drop and does not. Characters beyond Unicode's first plane, such as emoji, are left out.
    """
    words = (token.lower() for token in TOKEN.findall(caption.translate(ASCII)))
    return [
        part
        for word in words if word and word not in PUNCTUATION and not word.startswith("--")
        for part in TWO_WORDS.get(word, (BRACKETS.get(word, word),))
    ]
