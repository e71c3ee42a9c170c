"""A generated product catalog for the quickstart and the tests: seeded, taxonomic, messy."""

from __future__ import annotations

import html
import json
import random
from collections.abc import Iterator

_TAXONOMY: dict[str, dict[str, tuple[str, ...]]] = {
    "Kitchen": {
        "Coffee": ("Espresso Machine", "Moka Pot", "Burr Grinder", "Milk Frother"),
        "Cookware": ("Cast Iron Skillet", "Stock Pot", "Wok", "Dutch Oven"),
        "Knives": ("Chef Knife", "Paring Knife", "Bread Knife", "Whetstone"),
    },
    "Garden": {
        "Watering": ("Drip Kit", "Sprinkler", "Hose Reel", "Rain Gauge"),
        "Hand Tools": ("Pruning Shears", "Trowel", "Leaf Rake", "Hoe"),
        "Planters": ("Terracotta Pot", "Raised Bed", "Hanging Basket", "Seed Tray"),
    },
    "Sports": {
        "Cycling": ("Road Helmet", "Floor Pump", "Bike Lock", "Gel Saddle"),
        "Yoga": ("Yoga Mat", "Cork Block", "Stretch Strap", "Bolster"),
        "Climbing": ("Chalk Bag", "Dynamic Rope", "Sit Harness", "Belay Device"),
    },
    "Electronics": {
        "Audio": ("Wireless Earbuds", "Bookshelf Speaker", "Turntable", "USB Microphone"),
        "Cameras": ("Mirrorless Camera", "Prime Lens", "Tripod", "Memory Card"),
        "Networking": ("Mesh Router", "Network Switch", "Ethernet Cable", "WiFi Extender"),
    },
    "Office": {
        "Writing": ("Fountain Pen", "Mechanical Pencil", "Ink Bottle", "Highlighter Set"),
        "Paper": ("Dot Grid Notebook", "Sketchbook", "Index Cards", "Sticky Notes"),
        "Furniture": ("Standing Desk", "Task Chair", "Monitor Arm", "Filing Cabinet"),
    },
}
_BRANDS = (
    "Aldra",
    "Benmoor",
    "Corvane",
    "Dunlin & Sons",
    "Éclat",
    "Fjellvik",
    "Grünwald",
    "Hoshino",
)
_TRAITS = (
    "compact", "professional", "foldable", "lightweight", "heavy duty", "beginner friendly",
    "stainless steel", "bamboo", "recycled", "quiet", "extra long", "weatherproof",
)  # fmt: skip
_COLORS = ("black", "forest green", "navy", "sand", "crimson", "slate grey", "ivory", "copper")
_PROMISES = (
    "Built to last for years of daily use.",
    "Easy to clean and simple to store.",
    "Designed with people who use it every day.",
    "Ships flat, no tools needed.",
    "Comes with a two year warranty.",
    "A favourite gift for the season.",
)


def generate_products(count: int, seed: int = 7) -> Iterator[dict[str, object]]:
    """Generates products with a three-level taxonomy, brands and messy text.

    Some texts carry HTML tags and entities, odd white space, emoji or other scripts; some brands
    and descriptions are missing; a few items are exact copies under another id, as feeds have them.

    Args:
      count: number of products.
      seed: the same seed gives the same products.

    Yields:
      item_id, title, description, brand, category_path, popularity, updated_at.
    """
    rng = random.Random(seed)
    leaves = [
        (top, middle, leaf)
        for top, middles in _TAXONOMY.items()
        for middle, names in middles.items()
        for leaf in names
    ]
    earlier: list[dict[str, object]] = []
    for number in range(count):
        if earlier and rng.random() < 0.01:
            product = dict(rng.choice(earlier))
        else:
            product = _product(rng, rng.choice(leaves))
            earlier.append(product)
        product["item_id"] = f"P{number:06d}"
        product["popularity"] = round(rng.paretovariate(1.2), 3)
        product["updated_at"] = f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T00:00:00Z"
        yield product


def _product(rng: random.Random, path: tuple[str, str, str]) -> dict[str, object]:
    brand = rng.choice(_BRANDS) if rng.random() > 0.08 else None
    traits = rng.sample(_TRAITS, 2)
    size = f"{rng.randint(1, 60)} {rng.choice(('cm', 'pack', 'L', 'in'))}"
    title = f"{brand or ''} {path[2]} {traits[0]}, {rng.choice(_COLORS)}, {size}"
    promises = rng.sample(_PROMISES, 2)
    description = (
        f"{traits[1].capitalize()} {path[2].lower()} for your {path[1].lower()}. {promises[0]} "
        f"{promises[1]}"
    )
    mess = rng.random()
    if mess < 0.15:
        description = f"<p>{html.escape(description)}</p><ul><li>{traits[0]} &amp; {size}</li></ul>"
    elif mess < 0.22:
        description = f"  {description}\u00a0\u00a0 \t{rng.choice(('🌿', '⭐⭐⭐⭐', '☕', '🚲'))}"
    elif mess < 0.26:
        description = f"{description} {rng.choice(('מבצע', 'حصري', '限定版', 'новинка'))}"
    if rng.random() < 0.05:
        title = title.upper()
    return {
        "title": " ".join(title.split()),
        "description": None if 0.26 <= mess < 0.36 else description,
        "brand": brand,
        "category_path": list(path),
    }


def write_products(path: str, count: int, seed: int = 7) -> None:
    """Writes generated products as JSON Lines to a local file."""
    with open(path, "w", encoding="utf-8") as file:
        for product in generate_products(count, seed):
            file.write(json.dumps(product, ensure_ascii=False) + "\n")
