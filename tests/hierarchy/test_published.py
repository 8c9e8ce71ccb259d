"""The published trees against their rules, and against tables written out here by hand."""

import json
from collections import Counter
from importlib import import_module, resources

import pytest

from dh2l_jax.hierarchy.published import TAXONOMIES, taxonomy

# The table on the data set's page, in the spelling of its files.
CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

# Superclasses below the nodes of the five-level tree, from its three upper levels.
FIVE_LEVEL = {
    ("living_things", "animals", "fish_and_aquatic_mammals"): "aquatic_mammals fish",
    ("living_things", "animals", "mammals_and_people"): (
        "large_carnivores large_omnivores_and_herbivores medium_mammals people small_mammals"
    ),
    ("living_things", "animals", "insects_reptiles_and_invertebrates"): (
        "insects non-insect_invertebrates reptiles"
    ),
    ("living_things", "plants", "flowers_fruit_and_trees"): "flowers fruit_and_vegetables trees",
    ("non-living_things", "man-made_things", "household_things"): (
        "food_containers household_electrical_devices household_furniture"
    ),
    ("non-living_things", "man-made_things", "outdoor_constructions"): (
        "large_man-made_outdoor_things"
    ),
    ("non-living_things", "man-made_things", "vehicles"): "vehicles_1 vehicles_2",
    ("non-living_things", "natural_scenes", "natural_outdoor_scenes"): (
        "large_natural_outdoor_scenes"
    ),
}

BODY_TYPES = {
    "Cab": 18,
    "Convertible": 26,
    "Coupe": 33,
    "Hatchback": 14,
    "Minivan": 6,
    "SUV": 35,
    "Sedan": 50,
    "Van": 7,
    "Wagon": 7,
}


def read(name):
    text = (
        resources.files("dh2l_jax.hierarchy").joinpath("trees", f"{name}.json").read_text("utf-8")
    )
    return json.loads(text)


def groups(tree, level):
    """{name of a node: names of its children} for the nodes of `level`."""
    found = {name: [] for name in tree.names(level)}
    for child, parent in zip(tree.names(level + 1), tree.parents(level + 1), strict=True):
        found[tree.names(level)[parent]].append(child)
    return found


@pytest.mark.parametrize("name", TAXONOMIES)
def test_every_file_names_its_source_and_agrees_with_itself(name):
    table, tree = read(name), taxonomy(name)
    for line in ("dataset", "source", "licence"):
        assert table[line].strip()
    sizes = [tree.size(level) for level in range(1, tree.num_levels + 1)]
    assert sizes == table["levels"]
    for level in range(1, tree.num_levels + 1):
        assert len(set(tree.names(level))) == tree.size(level)
        assert all(text == text.strip() for text in tree.names(level))
    written = {
        parent: children
        for level in range(1, tree.num_levels)
        for parent, children in groups(tree, level).items()
    }
    assert all(written[parent] == children for parent, children in table["groups"].items())


@pytest.mark.parametrize("name", TAXONOMIES)
def test_every_file_belongs_to_a_name(name):
    files = {
        file.name for file in resources.files("dh2l_jax.hierarchy").joinpath("trees").iterdir()
    }
    assert f"{name}.json" in files
    assert files == {f"{known}.json" for known in TAXONOMIES}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("cifar-100", "cifar100"),
        ("CUB", "cub200"),
        ("cars", "cars196"),
        ("cifar100_5_level", "cifar100_five_level"),
        ("FashionMNIST", "fashion_mnist"),
        ("", ""),
    ],
)
def test_an_unknown_name_gives_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"^unknown taxonomy {wrong!r}.*{nearest}") as caught:
        taxonomy(wrong)
    assert "\n" not in str(caught.value)


def test_cifar100_equals_the_published_table():
    tree = taxonomy("cifar100")
    assert groups(tree, 1) == {parent: names.split() for parent, names in CIFAR100.items()}


def test_cifar100_is_in_the_order_of_its_labels():
    """Both kinds of labels are alphabetical: fine label 0 is an apple, coarse label 0 beavers."""
    tree = taxonomy("cifar100")
    assert list(tree.names(1)) == sorted(CIFAR100)
    assert list(tree.names(2)) == sorted(" ".join(CIFAR100.values()).split())
    assert tree.parents(2)[:5].tolist() == [4, 1, 14, 8, 0]
    assert tree.group_sizes(2).tolist() == [5] * 20


def test_cifar100_five_level_ends_in_cifar100():
    tree, lower = taxonomy("cifar100_five_level"), taxonomy("cifar100")
    assert [tree.size(level) for level in range(1, 6)] == [2, 4, 8, 20, 100]
    assert tree.names(4) == lower.names(1)
    assert tree.names(5) == lower.names(2)
    assert tree.parents(5).tolist() == lower.parents(2).tolist()


def test_cifar100_five_level_equals_the_table():
    tree = taxonomy("cifar100_five_level")
    paths = [
        tuple(tree.names(level)[row[leaf]] for level, row in enumerate(tree.ancestors(), 1))
        for leaf in range(100)
    ]
    expected = {
        (*above, superclass, name)
        for above, superclasses in FIVE_LEVEL.items()
        for superclass in superclasses.split()
        for name in CIFAR100[superclass].split()
    }
    assert set(paths) == expected


def test_cub200_parents_are_the_last_words():
    tree = taxonomy("cub200")
    names, parents = tree.names(2), tree.names(1)
    last = [name[name.rfind("_") + 1 :] for name in names]
    assert [parents[parent] for parent in tree.parents(2)] == last
    assert list(parents) == sorted(set(last))
    assert read("cub200")["exceptions"] == {}


def test_cub200_counts():
    tree = taxonomy("cub200")
    sizes = dict(zip(tree.names(1), tree.group_sizes(2).tolist(), strict=True))
    assert (len(sizes), sum(sizes.values())) == (70, 200)
    assert tree.size(1) / tree.size(2) == 0.35  # as the paper has it
    large = {"Warbler": 25, "Sparrow": 21, "Gull": 8, "Woodpecker": 6, "Kingfisher": 5}
    large |= dict.fromkeys(("Flycatcher", "Tern", "Vireo", "Wren"), 7)
    large |= dict.fromkeys(("Auklet", "Blackbird", "Grebe", "Grosbeak", "Oriole", "Swallow"), 4)
    assert {name: size for name, size in sizes.items() if size > 3} == large
    assert Counter(size for size in sizes.values() if size <= 3) == {3: 6, 2: 16, 1: 33}


def test_cub200_keeps_order_and_spelling():
    names = taxonomy("cub200").names(2)
    assert names[0] == "Black_footed_Albatross"
    assert names[140] == "Artic_Tern"
    assert names[145] == "Forsters_Tern"
    assert names[199] == "Common_Yellowthroat"


def test_cars196_names_are_those_of_tensorflow_datasets():
    module = import_module("tensorflow_datasets.image_classification.cars196")
    assert list(taxonomy("cars196").names(2)) == list(module._NAMES)


def test_cars196_parents_follow_from_rule_and_exceptions():
    table, tree = read("cars196"), taxonomy("cars196")
    named = table["exceptions"] | table["normalised"]
    for name, parent in zip(tree.names(2), tree.parents(2), strict=True):
        *_, last, year = name.split(" ")
        assert year.isdecimal()
        assert len(year) == 4
        # A name is listed exactly where the rule says nothing.
        assert (last in BODY_TYPES) == (name not in named), name
        assert tree.names(1)[parent] == named.get(name, last), name
    assert named.keys() <= set(tree.names(2))


def test_cars196_counts():
    table, tree = read("cars196"), taxonomy("cars196")
    counts = dict(zip(tree.names(1), tree.group_sizes(2).tolist(), strict=True))
    assert counts == BODY_TYPES
    assert list(counts) == sorted(counts)
    assert (len(counts), sum(counts.values())) == (9, 196)
    assert len(table["exceptions"]) == 15
    assert table["normalised"] == {"Ford Ranger SuperCab 2011": "Cab"}
    assert round(tree.size(1) / tree.size(2), 4) == 0.0459  # as the paper has it


def test_cars196_differs_from_chang_2021_where_the_remarks_say():
    """Three changes make our counts theirs."""
    tree = taxonomy("cars196")
    theirs = {
        "Chevrolet HHR SS 2010": "Minivan",
        "FIAT 500 Abarth 2012": "Coupe",
        "Ford E-Series Wagon Van 2012": "Wagon",
    }
    counts = Counter(
        theirs.get(name, tree.names(1)[parent])
        for name, parent in zip(tree.names(2), tree.parents(2), strict=True)
    )
    expected = {"Sedan": 50, "SUV": 35, "Coupe": 34, "Convertible": 26, "Cab": 18}
    assert counts == expected | {"Hatchback": 13, "Minivan": 7, "Wagon": 7, "Van": 6}
    remarks = read("cars196")["remarks"]
    assert all(f"{name} (there {parent})" in remarks for name, parent in theirs.items())
