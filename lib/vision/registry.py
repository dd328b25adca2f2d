"""The official image sets that the study knows: the paper's eight and CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RealSet:
    """An official data set: where the hub has it, what it must hold there, and how its classes are prompted."""

    title: str
    hub: str
    classes: int
    train: int
    test: int
    templates: tuple[str, ...]
    folder: str = "data"  # of the parquet files in the hub's repository


VIEWS = ("{} of {{}}.", "{} of a {{}}.", "{} of the {{}}.")
NUMBER = ('a photo of the number: "{}".',)
SATELLITE = tuple(view.format("a centered satellite photo") for view in VIEWS)
AERIAL = tuple(view.format(f"{kind} photo") for view in VIEWS for kind in ("satellite", "aerial"))
SIGN = tuple(f'a {kind} photo of a "{{}}" traffic sign.' for kind in ("zoomed in", "centered", "close up"))
TEXTURE = tuple(f"a photo of {a} {{}} {noun}." for a in ("a", "the") for noun in ("texture", "pattern", "thing"))
PHOTO = ("a photo of a {}.", "a photo of the {}.")

# The paper's eight and CIFAR-10. Counts are those of the named repositories, which differ from other releases of a
# set (GTSRB: the 26,640 training images of the first release; EuroSAT: 21,600 + 2,700 of 27,000). Prompts follow
# CLIP's lists; digits stay digits, as the published heads have them.
REGISTRY: dict[str, RealSet] = {
    "sun397": RealSet("SUN397", "tanganke/sun397", 397, 19_850, 19_850, PHOTO),
    "stanford_cars": RealSet("Cars", "tanganke/stanford_cars", 196, 8_144, 8_041, (*PHOTO, "a photo of my {}.")),
    "resisc45": RealSet("RESISC45", "tanganke/resisc45", 45, 18_900, 6_300, AERIAL),
    "eurosat": RealSet("EuroSAT", "tanganke/eurosat", 10, 21_600, 2_700, SATELLITE),
    "svhn": RealSet("SVHN", "ufldl-stanford/svhn", 10, 73_257, 26_032, NUMBER, "cropped_digits"),
    "gtsrb": RealSet("GTSRB", "tanganke/gtsrb", 43, 26_640, 12_630, SIGN),
    "mnist": RealSet("MNIST", "ylecun/mnist", 10, 60_000, 10_000, NUMBER, "mnist"),
    "dtd": RealSet("DTD", "tanganke/dtd", 47, 3_760, 1_880, TEXTURE),
    "cifar10": RealSet(
        "CIFAR-10", "uoft-cs/cifar10", 10, 50_000, 10_000, (*PHOTO, "a blurry photo of a {}."), "plain_text"
    ),
}
# ClassLabel names that make poor prompts, in some copies of a set -> how CLIP's prompt lists say them.
MENDS = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}
