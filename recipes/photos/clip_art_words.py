"""Words that names of clip art are made of. The files are named by hundreds of people, title and artist run together:
only what is listed here is taken for a part of a title."""

from __future__ import annotations

from pathlib import Path

# Italian and French titles: "gatto_cat_architetto" shows a cat.
TRANSLATED = {
    "abeille": "bee", "acquila": "eagle", "aglio": "garlic", "albero": "tree", "ambulanza": "ambulance",
    "anatra": "duck", "antilope": "antelope", "ape": "bee", "aquila": "eagle", "arbre": "tree",
    "betoniera": "concrete mixer", "biberon": "bottle", "bicicletta": "bicycle", "bussola": "compass",
    "cacuts": "cactus", "calamita": "magnet", "calcolatrice": "calculator", "cammello": "camel", "candela": "candle",
    "canguro": "kangaroo", "cavalletta": "grasshopper", "cavallo": "horse", "chiave": "key", "cigno": "swan",
    "ciuccio": "pacifier", "clessidra": "hourglass", "coccinella": "ladybug", "coccinelle": "ladybug",
    "coccinellona": "ladybug", "colombo": "pigeon", "coniglio": "rabbit", "cornetto": "croissant", "couronne": "crown",
    "dente": "tooth", "dino": "dinosaur", "dinosauro": "dinosaur", "elefante": "elephant", "elefantone": "elephant",
    "fabbrica": "factory", "farfalla": "butterfly", "fattoria": "farm", "fiore": "flower", "formichina": "ant",
    "formicona": "ant", "gabbiano": "seagull", "gallo": "rooster", "gattina": "cat", "gatto": "cat",
    "gelato": "ice cream", "glace": "ice cream", "gufo": "owl", "hummers": "hummer", "leone": "lion", "libro": "book",
    "livella": "level", "lucchetto": "padlock", "lucertola": "lizard", "lucertolona": "lizard", "lucertolone": "lizard",
    "lumaca": "snail", "mante": "mantis", "mantide": "mantis", "microscopio": "microscope", "mondo": "globe",
    "moschito": "mosquito", "motosega": "chainsaw", "mucca": "cow", "olifant": "elephant", "orso": "bear",
    "ours": "bear", "palloncini": "balloons", "palmtree": "palm tree", "pannocchia": "corn cob",
    "pasteque": "watermelon", "pecora": "sheep", "pecorella": "sheep", "pennello": "paintbrush", "pera": "pear",
    "pescetto": "fish", "pinguino": "penguin", "pollo": "chicken", "pomodori": "tomatoes", "principessa": "princess",
    "provetta": "test tube", "ragnetto": "spider", "ragno": "spider", "ramarro": "lizard", "rana": "frog",
    "ravanello": "radish", "sapin": "fir tree", "siringa": "syringe", "spaventapasseri": "scarecrow",
    "stampante": "printer", "struzzo": "ostrich", "tacchino": "turkey", "teddybear": "teddy bear",
    "telefono": "telephone", "tigre": "tiger", "tophat": "top hat", "topo": "mouse", "toro": "bull", "torta": "cake",
    "trattore": "tractor", "uccello": "bird", "uovo": "egg", "vacca": "cow", "zanzara": "mosquito", "zucca": "pumpkin",
}


def _words(file: str) -> frozenset[str]:
    return frozenset((Path(__file__).parent / file).read_text(encoding="utf-8").split())


NOUNS = _words("clip_art_nouns.txt") | frozenset(TRANSLATED.values())
MODIFIERS = _words("clip_art_modifiers.txt")
