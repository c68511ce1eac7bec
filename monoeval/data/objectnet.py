"""ObjectNet (Barbu et al. 2019) as it is published: its folder, its border, and its classes in ImageNet."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from monoeval.data.folders import class_folders
from monoeval.data.images import Image
from monoeval.data.source import Source, Splits
from monoeval.errors import MonoevalError, UsageError

log = logging.getLogger("monoeval")

BORDER = 2
"""Pixels cut off each side: the images have a red border of one, and published evaluations cut two."""

_TABLE = """
alarm_clock n02708093 n03196217; backpack n02769748; banana n07753592; band_aid n02786058; basket n04204238;
beer_bottle n02823428; bench n03891251; bicycle n03792782 n02835271; binder_closed n02840245;
bottle_cap n02877765; bread_loaf n07684084; broom n02906734; bucket n02909870; butchers_knife n03041632;
can_opener n02951585; candle n02948072; cellphone n02992529; chair n02791124 n03376595 n04099969;
clothes_hamper n03482405; coffee_french_press n03297495; combination_lock n03075370;
computer_mouse n03793489; desk_lamp n04380533; doormat n03223299; dress n03450230; dress_shoe_men n03680355;
drill n03995372; drinking_cup n07930864; drying_rack_for_dishes n03961711; envelope n03291819; fan n03271574;
frying_pan n03400231; full_sized_towel n02808304; hair_dryer n03483316; hammer n03481172;
hand_towel_or_rag n03207743; helmet n03379051 n03127747; iron_for_clothes n03584829; jeans n03594734;
keyboard n03085013; ladle n03633091; lampshade n03637318; laptop_open n03642806; lemon n07749582;
letter_opener n03658185; lighter n03666591; lipstick n03676483; match n03729826; measuring_cup n03733805;
microwave n03761084; mixing_salad_bowl n03775546; monitor n03782006; mug n03063599; nail_fastener n03804744;
necklace n03814906; orange n07747607; padlock n03874599; paintbrush n03876231; paper_towel n03887697;
pen n02783161 n04033901 n03388183; pill_bottle n03937543; pillow n03938244; pitcher n03950228;
plastic_bag n03958227; plate n07579787; plunger n03970156; pop_can n03983396; portable_heater n04265275;
printer n04004767; remote_control n04074963; ruler n04118776; running_shoe n04120489; safety_pin n04127249;
salt_shaker n04131690; sandal n04133789; screw n04153751; shovel n04208210;
skirt n03534580 n03770439 n03866082; sleeping_bag n04235860; soap_dispenser n04254120; sock n04254777;
soup_bowl n04263257; spatula n04270147; speaker n03691459; still_camera n03976467 n04069434;
strainer n04332243; stuffed_animal n04399382; suit_jacket n04350905; sunglasses n04356056; sweater n04370456;
swimming_trunks n04371430; t-shirt n03595614; teapot n04398044; tennis_racket n04039381;
tie n02883205 n04591157; toaster n04442312; toilet_paper_roll n15075141; trash_bin n02747177; tray n04476259;
tv n04404412; umbrella n04507155; vacuum_cleaner n04517823; vase n04522168; wallet n04548362;
watch n03197337; water_bottle n04557648; weight_exercise n03255030; weight_scale n04141975;
wheel n02974003 n03874293; whistle n04579432; wine_bottle n04591713; winter_glove n03775071; wok n04596742
"""

WORDNET: dict[str, tuple[str, ...]] = {
    folder: tuple(ids) for folder, *ids in (entry.split() for entry in _TABLE.split(";"))
}
"""Folder of a class → the WordNet ids of the classes of ImageNet that it covers: 113 of ObjectNet's 313 classes,
125 of ImageNet's. From the mappings that come with ObjectNet, by way of the words of ImageNet's classes."""


def images_folder(root: Path) -> Path | None:
    """Where the class folders are, where `root` is an unpacked ObjectNet or the `images` in it; else None."""
    for folder in (root / "images", root):
        if folder.is_dir() and (folder.parent / "mappings" / "folder_to_objectnet_label.json").is_file():
            return folder
    return None


def objectnet_splits(images: Path) -> Splits:
    """One split: the classes that ImageNet has, each named by its WordNet ids with + between, without the border.

    Raises UsageError where none of its classes is there.
    """
    return {"": partial(_source, images)}


def _source(images: Path) -> Source:
    source = class_folders(images)
    named = [place for place, name in enumerate(source.names) if name in WORDNET]
    if not named:
        raise UsageError(f"{images} has none of the class folders of ObjectNet that ImageNet has, such as banana.")
    if len(named) < len(source.names):
        log.info("ObjectNet: %d of its %d classes are ImageNet's and are read.", len(named), len(source.names))
    kept = source.take(np.flatnonzero(np.isin(source.labels, named)))
    return replace(
        kept,
        labels=np.searchsorted(named, kept.labels),
        names=tuple("+".join(WORDNET[source.names[place]]) for place in named),
        keys=[*kept.keys, "without border"],
        read=_Inside(kept.read),
    )


@dataclass(frozen=True)
class _Inside:
    """Reads images without their border."""

    read: Callable[[int], Image]

    def __call__(self, row: int) -> Image:
        image = self.read(row)
        if min(image.shape[:2]) <= 2 * BORDER:
            raise MonoevalError(
                f"An image of ObjectNet has {image.shape[1]} × {image.shape[0]} pixels: unpack it again."
            )
        return image[BORDER:-BORDER, BORDER:-BORDER]
