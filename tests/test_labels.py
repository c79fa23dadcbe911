"""Names of things: plurals, aliases and their file, and the classes of a request."""

from pathlib import Path

import pytest

from florence_tagger.errors import RequestError, SettingsError
from florence_tagger.labels import Aliases, name_classes, normalize, parse_aliases, read_aliases
from florence_tagger.plurals import singular

# COCO's names that have a plural of their own, and words that are easily taken for one.
PLURALS = """
person people, bicycle bicycles, car cars, motorcycle motorcycles, airplane airplanes, bus buses, train trains,
truck trucks, boat boats, light lights, hydrant hydrants, sign signs, bench benches, bird birds, cat cats, dog dogs,
horse horses, cow cows, elephant elephants, bear bears, zebra zebras, giraffe giraffes, backpack backpacks,
umbrella umbrellas, handbag handbags, tie ties, suitcase suitcases, frisbee frisbees, ski skis, snowboard snowboards,
ball balls, kite kites, bat bats, glove gloves, bottle bottles, glass glasses, cup cups, fork forks, knife knives,
spoon spoons, bowl bowls, banana bananas, apple apples, sandwich sandwiches, orange oranges, carrot carrots,
pizza pizzas, donut donuts, cake cakes, chair chairs, couch couches, table tables, toilet toilets, mouse mice,
remote remotes, keyboard keyboards, phone phones, microwave microwaves, oven ovens, toaster toasters, book books,
clock clocks, vase vases, toothbrush toothbrushes, man men, woman women, fireman firemen, child children, foot feet,
tooth teeth, goose geese, leaf leaves, shelf shelves, loaf loaves, box boxes, dish dishes, dress dresses, watch watches,
tomato tomatoes, potato potatoes, shoe shoes, toe toes, taxi taxis, house houses, blouse blouses, rose roses,
cactus cactuses, octopus octopuses, walrus walruses, lens lenses, gas gases, cherry cherries, lady ladies,
cookie cookies, pie pies, key keys, toy toys, bee bees, tree trees, axe axes, canvas canvases, cache caches,
mattress mattresses, crutch crutches, fox foxes, suv suvs, sheep sheep, scarf scarves, olive olives, canoe canoes
"""
PAIRS = [(one, many) for one, many in (pair.split() for pair in PLURALS.replace("\n", " ").split(","))]


@pytest.mark.parametrize(("one", "many"), PAIRS)
def test_singular_of_a_plural_and_of_itself_is_the_singular(one: str, many: str) -> None:
    assert singular(many) == one
    assert singular(one) == one


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Car", "cars"),
        ("  fire   Hydrants ", "fire hydrant"),
        ("PEOPLE", "person"),
        ("Straße", "STRASSE"),
        ("犬", "犬"),
    ],
)
def test_normalize_ignores_case_white_space_and_plural(name: str, same: str) -> None:
    assert normalize(name) == normalize(same)


@pytest.mark.parametrize(
    ("name", "other"), [("bus", "bu"), ("glass", "gla"), ("traffic light", "light"), ("a b", "ab")]
)
def test_normalize_keeps_different_names_apart(name: str, other: str) -> None:
    assert normalize(name) != normalize(other)


ALIASES = Aliases({"car": "car", "vehicle": "car", "taxi": "car"})


def test_fold_takes_aliases_and_leaves_other_labels_as_they_are() -> None:
    labels = ["Vehicles", "taxi", "Cars", "Dogs"]
    assert [ALIASES.fold(label) for label in labels] == ["car", "car", "car", "Dogs"]


def test_name_classes_finds_them_by_what_they_stand_for() -> None:
    assert name_classes(["Dogs", "taxis"], ALIASES) == {"dog": "Dogs", "car": "taxis"}


@pytest.mark.parametrize("classes", [["car", "car"], ["car", "Cars "], ["vehicle", "taxi"]])
def test_name_classes_refuses_one_thing_twice(classes: list[str]) -> None:
    with pytest.raises(RequestError, match="one thing"):
        name_classes(classes, ALIASES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("aliases.json", '{"car": ["vehicle", "taxi"]}'),
        ("aliases.yaml", "car: [vehicle, taxi]\n"),
        ("ALIASES.YML", "car:\n- vehicle\n- taxi\n"),
    ],
)
def test_read_aliases_takes_json_and_yaml(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read_aliases(path) == ALIASES


def test_read_aliases_of_no_file_changes_nothing() -> None:
    assert read_aliases(None).fold("vehicle") == "vehicle"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", '{"car": ["suv"], "truck": ["SUVs"]}', "maps 'SUVs' twice, to 'car' and to 'truck'"),
        ("a.json", '{"car": ["suv", "suv"]}', "maps 'suv' twice"),
        ("a.json", '{"car": ["truck"], "truck": ["lorry"]}', "maps 'truck' twice"),
        ("a.json", '{"car": ["suv"], "car": ["taxi"]}', "has 'car' twice"),
        ("a.yaml", "car: [suv]\ncar: [taxi]\n", "has 'car' twice"),
        ("a.json", '["car"]', "accepted is an object of lists"),
        ("a.json", '{"car": "suv"}', "accepted is an object of lists"),
        ("a.json", '{"car": ["suv", 3]}', "accepted is an object of lists"),
        ("a.json", '{"car": [" "]}', "accepted is an object of lists"),
        ("a.yaml", "no: [yes]\n", "accepted is an object of lists"),
        ("a.yaml", "? [car]\n: [suv]\n", "no YAML"),
        ("a.yaml", "a: [", "stops being YAML at line"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []\n", "stops being YAML at line"),
        ("a.json", "{car}", "stops being JSON at line 1, column 2"),
        ("a.json", "[" * 100_000, "accepted is an object of lists"),
        ("a.json", b"\xff", "UTF-8"),
        ("none", None, "No such file"),
    ],
)
def test_read_aliases_says_what_is_wrong(tmp_path: Path, name: str, text: str | bytes | None, reason: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match="FLORENCE_ALIASES=") as refused:
        read_aliases(path)
    assert reason in str(refused.value)


def test_aliases_may_have_another_form_of_their_label() -> None:
    aliases = parse_aliases({"people": ["person", "man"]})
    assert [aliases.fold(name) for name in ("person", "Men", "people")] == ["people"] * 3


def test_aliases_may_be_many() -> None:
    assert len(parse_aliases({"thing": [f"name {number} x" for number in range(10_000)]}).labels) == 10_001
