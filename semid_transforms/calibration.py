"""Texts that an encoder is calibrated on and checked with: the same on every machine."""

from __future__ import annotations

import random

_THINGS = (
    "kettle", "notebook", "bicycle helmet", "desk lamp", "running shoes", "shampoo", "board game",
    "guitar strings", "thriller", "documentary", "garden hose", "coffee grinder", "phone case",
    "winter jacket", "face cream", "cat food", "drill set", "olive oil", "baby blanket", "tea",
    "vitamin tablets", "printer ink", "wall clock", "tent", "frying pan", "headphones", "novel",
    "history of the war", "romantic comedy", "dog leash", "yoga mat", "light bulb", "suitcase",
    "watch strap",
)  # fmt: skip
_QUALITIES = (
    "small", "professional", "waterproof", "stainless steel", "organic", "for children", "vintage",
    "lightweight", "heavy duty", "rechargeable", "fragrance free", "award winning", "adjustable",
    "black and white", "deep blue", "extra long", "handmade", "foldable", "low noise",
    "gluten free",
)  # fmt: skip
_SENTENCES = (
    "The {quality} {thing} comes with a {thing} and {number} spare parts.",
    "Made in 19{number} by two brothers who had lost everything, it tells of a {thing}.",
    "Read the instructions before you use this {thing}; keep away from heat above {number} C.",
    "Dimensions: {number} x {number} x {number} cm, {number}.{number} kg (B0{number}-XK{number}).",
    "Why would anyone buy a {thing} that is not {quality}? Ours has a warranty of {number} months!",
    "When she finds the {quality} {thing} in her father's house, nothing is as it was.",
    "Fits most models; see pictures, colours may vary from the {thing} you receive.",
    "For dry, sensitive or damaged skin and hair: apply twice, rinse, repeat after {number} days.",
    "['Features: {quality}, {quality}', '100% new', \"don't bend\"] {thing}/{thing} & more...",
    "Starring nobody you know, by the maker of the {thing}, {number} minutes, rated PG-{number}.",
    "Das {thing} ist robust und leicht; le {thing} est {quality}; el {thing} para la familia.",
    "電気 {thing} 限定版, новинка {number}, حصري, {quality}.",
)
_TEXTS = 128
_LONGEST = 14


def calibration_texts() -> list[str]:
    """Returns product-like texts of 4 to 400 words, most of them short, always the same ones."""
    chosen = random.Random(0)
    texts = []
    for _ in range(_TEXTS):
        title = f"{chosen.choice(_QUALITIES)} {chosen.choice(_THINGS)}, {chosen.choice(_QUALITIES)}"
        sentences = [_filled(chosen) for _ in range(int(_LONGEST * chosen.random() ** 2))]
        texts.append(" ".join([f"{title.capitalize()}.", *sentences]))
    return texts


def _filled(chosen: random.Random) -> str:
    words = chosen.choice(_SENTENCES).split("{")
    filled = words[0]
    for word in words[1:]:
        name, rest = word.split("}", 1)
        filled += {
            "thing": chosen.choice(_THINGS),
            "quality": chosen.choice(_QUALITIES),
            "number": str(chosen.randint(2, 99)),
        }[name] + rest
    return filled
