"""English plurals -> singulars, so that `cars` and `car` are one name. A table of rules, and of words that break them.

Two names are only compared by it, so that a word which is no plural (`jeans`) may come out as no word: both sides do.
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
# Of these `ie` is the word's own.
ENDING_IN_IE = frozenset(
    ("birdie", "brownie", "cookie", "hoodie", "hippie", "movie", "pie", "selfie", "smoothie", "tie", "zombie", "magpie")
)
ENDING_IN_OE = frozenset(("canoe", "doe", "hoe", "horseshoe", "oboe", "shoe", "snowshoe", "toe", "tiptoe"))
ENDING_IN_CHE = frozenset(("ache", "cache", "headache", "moustache", "mustache", "avalanche", "quiche", "porsche"))
# A singular ends so, and no plural; `ss`, `us` and `is` are told in `singular`.
ES_ENDINGS = ("ches", "shes", "sses", "xes", "zzes")
SHORTEST = 4  # letters of a plural that is not in the table


def singular(word: str) -> str:
    """Return the singular of a word in small letters; of a word that is no plural, the word."""
    if word in INVARIANT:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("men") and word not in ("specimen", "regimen", "abdomen", "omen", "stamen"):
        return f"{word[:-2]}an"
    if len(word) < SHORTEST or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return without_ending(word)


def without_ending(word: str) -> str:
    """Return a word that ends in the `s` of a plural without it, and without what comes with it."""
    if word.endswith("ies"):
        return word[:-1] if word[:-1] in ENDING_IN_IE else f"{word[:-3]}y"
    if word.endswith("oes"):
        return word[:-1] if word[:-1] in ENDING_IN_OE else word[:-2]
    if word.endswith("uses") and not word.endswith(("ouses", "auses", "fuses", "muses")):
        return word[:-2]  # cactuses, viruses; not houses and blouses
    if word.endswith(ES_ENDINGS) and word[:-1] not in ENDING_IN_CHE:
        return word[:-2]
    return word[:-1]
