"""Write tests/fixtures/openflamingo_evaluation: OpenFlamingo's own evaluation of a small model with random weights.

    benchmarks/peers/.venv/bin/python -m benchmarks.peers.write_evaluation EVAL_MODEL.py

Runs in the peer's environment; README.md beside this file says where EVAL_MODEL.py comes from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, logging

from benchmarks.peers.evaluation_items import CLASSES, END_OF_TEXT, QUERIES, SUPPORT, make_tokenizer
from benchmarks.peers.evaluation_recorder import (
    LabelledPictures,
    import_evaluation,
    make_recorder,
    record_demos,
    record_scores,
)
from benchmarks.peers.filled_openflamingo import make_peer
from benchmarks.peers.openflamingo_cases import VISION, Case
from benchmarks.peers.random_weights import random_picture

OUT = Path(__file__).parents[2] / "tests" / "fixtures" / "openflamingo_evaluation"
SHOTS, SEED, BATCH = (0, 2, 4), 42, 3
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT,
             "clean_up_tokenization_spaces": False}


def make_case(vocabulary: int, newline: int) -> Case:
    """The model. Never among its likeliest tokens are those whose handling differs on purpose (the page on evaluation):
    the end of text, the image, padding, the line break."""
    end_of_text, media, pad, spare = vocabulary - 1, vocabulary + 1, vocabulary + 2, vocabulary + 3
    return Case("mpt", 1, 177, "layers", rows=vocabulary, context=512,
                silent=(newline, end_of_text, media, pad, spare))


def write_inputs(folder: Path) -> argparse.Namespace:
    """The pictures and the files of items, in the forms of Flickr30k, VizWiz, ImageNet and Hateful Memes."""
    size = VISION["image_size"]
    for number, record in enumerate((*SUPPORT, *QUERIES)):
        Image.fromarray(random_picture(number, size, size)).save(folder / record.picture)
    pools = {"train": SUPPORT, "test": QUERIES}
    write(folder / "flickr.json", {"images": [
        {"split": split, "filename": record.picture, "sentences": [{"raw": text} for text in record.captions]}
        for split, records in pools.items() for record in records
    ]})
    for split, records in pools.items():
        write(folder / f"{split}_questions.json", {"info": {}, "task_type": "", "data_type": "", "data_subtype": "",
                                                   "license": {}, "questions": [
            {"image_id": record.picture, "question_id": number, "question": record.question}
            for number, record in enumerate(records)]})
        write(folder / f"{split}_annotations.json", {"annotations": [
            {"image_id": record.picture, "question_id": number, "question_type": "what", "answer_type": "other",
             "answers": [{"answer": answer, "answer_id": place} for place, answer in enumerate(record.answers)]}
            for number, record in enumerate(records)]})
    for split, records in {"train": SUPPORT, "val": QUERIES}.items():
        write(folder / f"{split}.json", [(record.picture, record.label) for record in records])
        lines = [json.dumps({"id": number, "img": f"img/{record.picture}", "text": record.meme,
                             "label": int(record.hateful == "yes")}) for number, record in enumerate(records)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    vizwiz = {f"vizwiz_{split}_{key}": f"{folder}/{split}_{file}.json" for split in pools
              for key, file in (("questions_json_path", "questions"), ("annotations_json_path", "annotations"))}
    return argparse.Namespace(
        model="open_flamingo", rank=0, world_size=1, num_samples=-1, batch_size=BATCH, rices=False,
        query_set_size=len(SUPPORT), flickr_image_dir_path=str(folder),
        flickr_karpathy_json_path=f"{folder}/flickr.json", flickr_annotations_json_path="",
        vizwiz_train_image_dir_path=str(folder), vizwiz_test_image_dir_path=str(folder), imagenet_root=str(folder),
        hateful_memes_image_dir_path=str(folder), hateful_memes_train_annotations_json_path=f"{folder}/train.jsonl",
        hateful_memes_test_annotations_json_path=f"{folder}/val.jsonl",
        **vizwiz,
    )


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def record_all(evaluate: Any, recorder: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Every task at every number of shots; classes by the mean over orders of the shots too."""
    scores = record_scores(evaluate)
    record_demos(evaluate, recorder)
    evaluate.ImageNetDataset, evaluate.IMAGENET_CLASSNAMES = LabelledPictures, list(CLASSES)
    found: dict[str, Any] = {"captions": {}, "questions": {}, "classes": {}, "memes": {}}
    for shots in SHOTS:
        common = {"args": args, "eval_model": recorder, "seed": SEED, "num_shots": shots}
        evaluate.evaluate_captioning(**common, dataset_name="flickr")
        found["captions"][shots] = {"calls": taken(recorder), "judged": scores["captions"]}
        accuracy = evaluate.evaluate_vqa(**common, dataset_name="vizwiz")
        found["questions"][shots] = {
            "calls": taken(recorder), "accuracy": accuracy,
            "accuracies": {QUERIES[number].picture: value for number, value in scores["accuracies"].items()},
        }
        args.batch_size = 1  # with its cache the peer attends to the padding of a batch
        accuracy = evaluate.evaluate_classification(**common, dataset_name="imagenet", use_prompt_ensembling=True)
        found["classes"][shots] = {"calls": taken(recorder), "accuracy": accuracy}
        evaluate.evaluate_classification(**common, dataset_name="hateful_memes")
        found["memes"][shots] = {"calls": taken(recorder)}
        args.batch_size = BATCH
    return found


def taken(recorder: Any) -> list[dict[str, Any]]:
    """The calls since the last time."""
    calls, recorder.calls = recorder.calls, []
    return calls


def main() -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    case = make_case(tokenizer.get_vocab_size(), tokenizer.token_to_id("Ċ"))
    source = Path(sys.argv[1]).resolve()
    with torch.no_grad(), tempfile.TemporaryDirectory() as name, chdir(name):
        peer = make_peer(case)
        peer.model.lang_encoder.generation_config.use_cache = True  # a configuration made by hand has it off
        folder = Path(name)
        tokenizer.save(f"{folder}/tokenizer.json")
        write(folder / "tokenizer_config.json", TOKENIZER)
        text = AutoTokenizer.from_pretrained(name)
        text.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
        text.add_special_tokens({"pad_token": "<PAD>"})  # the order of open_flamingo.src.factory
        assert text.convert_tokens_to_ids(["<|endofchunk|>", "<image>"]) == [case.end_of_chunk, case.media]
        recorder = make_recorder(source, peer.model, text)
        answers = record_all(import_evaluation(), recorder, write_inputs(folder))
    OUT.mkdir(exist_ok=True)
    twin = {
        "seed": case.seed, "silent": case.silent, "rows": case.resized, "language_config": peer.language_config,
        "vision_sizes": VISION, "activation": case.activation, "checkpoint_wrapping": case.wrapping,
        "vision": case.vision, "post_norm": case.post_norm, "aliases": peer.aliases,
        "files": {"checkpoint": peer.checkpoint, "language": peer.language, "vision": peer.vision},
        "tokenizer": json.loads(tokenizer.to_str()), "tokenizer_config": TOKENIZER, "classes": CLASSES,
        "support": list(map(asdict, SUPPORT)), "queries": list(map(asdict, QUERIES)),
    }
    for file, record in (("twin", twin), ("answers", answers)):
        lines = (f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in record.items())
        (OUT / f"{file}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the process group of one would wait for others
