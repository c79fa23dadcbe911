"""English plurals -> singulars, so that `cars` and `car` are one name: rules, and tables of their exceptions.

The result is only used to compare two names. For words that look like plurals (`jeans`) it may be no word, which is
harmless because it is the same for both names.
"""

INVARIANT = frozenset(
    (
        *("gas", "canvas", "atlas", "christmas", "pajamas", "pyjamas", "pancreas", "texas", "lens", "series"),
        *("species", "chess"),
    )
)
IRREGULAR = {
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "dice": "die",
    "cacti": "cactus",
    "octopi": "octopus",
    "gases": "gas",
    "canvases": "canvas",
    "atlases": "atlas",
    "lenses": "lens",
    "irises": "iris",
    "axes": "axe",
    "quizzes": "quiz",
    "knives": "knife",
    "wives": "wife",
    "lives": "life",
    "taxis": "taxi",
    "skis": "ski",
    "kiwis": "kiwi",
    "bikinis": "bikini",
    "zucchinis": "zucchini",
    "emus": "emu",
    "menus": "menu",
    "buses": "bus",
    "busses": "bus",
} | {
    f"{stem}ves": f"{stem}f"
    for stem in ("cal", "el", "hal", "hoo", "lea", "loa", "scar", "shea", "shel", "thie", "wol", "whar")
}
# Singulars that end in `ie`, which would otherwise become `y`.
ENDING_IN_IE = frozenset(
    ("birdie", "brownie", "cookie", "hoodie", "hippie", "movie", "pie", "selfie", "smoothie", "tie", "zombie", "magpie")
)
ENDING_IN_OE = frozenset(("canoe", "doe", "hoe", "horseshoe", "oboe", "shoe", "snowshoe", "toe", "tiptoe"))
ENDING_IN_CHE = frozenset(("ache", "cache", "headache", "moustache", "mustache", "avalanche", "quiche", "porsche"))
# Plurals with these endings lose `es`, not `s`.
ES_ENDINGS = ("ches", "shes", "sses", "xes", "zzes")
MIN_LENGTH = 4  # letters of a plural that is not in a table


def singular(word: str) -> str:
    """Return the singular of a word in lower case, or the word if it is not a plural."""
    if word in INVARIANT:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("men") and word not in ("specimen", "regimen", "abdomen", "omen", "stamen"):
        return f"{word[:-2]}an"
    if len(word) < MIN_LENGTH or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return strip_ending(word)


def strip_ending(word: str) -> str:
    """Return the singular of a regular plural, which ends in `s`."""
    if word.endswith("ies"):
        return word[:-1] if word[:-1] in ENDING_IN_IE else f"{word[:-3]}y"
    if word.endswith("oes"):
        return word[:-1] if word[:-1] in ENDING_IN_OE else word[:-2]
    if word.endswith("uses") and not word.endswith(("ouses", "auses", "fuses", "muses")):
        return word[:-2]  # cactuses, viruses; not houses and blouses
    if word.endswith(ES_ENDINGS) and word[:-1] not in ENDING_IN_CHE:
        return word[:-2]
    return word[:-1]
