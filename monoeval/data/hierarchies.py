"""Which classes of known data sets are alike: facts about the data, by the class names the hub gives them."""

CIFAR10_PAIRS = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}
"""Classes that are taken for another one under asymmetric noise (Patrini et al. 2017)."""

CIFAR10_CLASSES = frozenset(
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
)

_CIFAR100 = {
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

CIFAR100_SUPERCLASS: dict[str, str] = {
    fine: coarse for coarse, listed in _CIFAR100.items() for fine in listed.split()
}
"""Fine class → superclass of CIFAR-100 (Krizhevsky 2009), five fine classes each, in alphabetical order."""


def cyclic(superclass: dict[str, str]) -> dict[str, str]:
    """Each fine class → the next one of its superclass in alphabetical order, the last → the first."""
    members: dict[str, list[str]] = {}
    for fine in sorted(superclass):
        members.setdefault(superclass[fine], []).append(fine)
    return {fine: alike[(i + 1) % len(alike)] for alike in members.values() for i, fine in enumerate(alike)}


def confusions(class_names: tuple[str, ...]) -> dict[str, str] | None:
    """The published asymmetric noise of CIFAR-10 or CIFAR-100 where these are its classes, else None."""
    names = set(class_names)
    if names == CIFAR10_CLASSES:
        return CIFAR10_PAIRS
    return cyclic(CIFAR100_SUPERCLASS) if names == CIFAR100_SUPERCLASS.keys() else None
