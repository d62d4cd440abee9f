# midigpt. `make` lists what there is. ARGS="..." passes flags, ROOT=dir chooses the working folder.
PYTHON ?= python3
ROOT ?= .
ARGS ?=
RUN = .venv/bin/python
WORK = --root "$(ROOT)" $(ARGS)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup index dataset doctor tokenizer train-bin train plot sample evaluate compare demo test clean

help:
	@echo 'make demo         the whole way on 100 Bach chorales, in minutes: start here'
	@echo 'make setup        make .venv with everything that training and sampling need'
	@echo
	@echo 'Your own music: put MIDI files into raw_data/ (subfolders are fine), then'
	@echo 'make index        list the MIDI files'
	@echo 'make dataset      convert them to text (dataset-100: 100 files more)   ARGS="--layout track"'
	@echo 'make doctor       what is in the folder and what to do about it: cache/doctor.html'
	@echo 'make tokenizer    learn the tokenizer                 ARGS="--vocab-size 1024"'
	@echo 'make train-bin    pack the tokens, in twelve keys     ARGS="--keys 1"'
	@echo 'make train        train; Ctrl-C saves, again goes on  ARGS="--run NAME --max-steps 2000"'
	@echo 'make plot         draw the curves of runs to a .png   ARGS="--runs NAME OTHER"'
	@echo 'make sample       write a new .mid to out/            ARGS="--prompt song.mid --takes 5"'
	@echo 'make evaluate     takes against held-out pieces       ARGS="--run NAME --takes 200"'
	@echo
	@echo 'make compare      which language your music is best written in, by bits per note'
	@echo
	@echo 'make test         all tests (test-NAME: those whose name contains NAME)'
	@echo 'make clean        remove what the steps up to train-bin made; runs, takes and raw_data stay'
	@echo
	@echo 'ARGS="--help" shows all flags of a step; ROOT=dir works in another folder.'

# pip runs once for each change of what is to be installed.
.venv/setup: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/setup-demo: .venv/setup
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

.venv/setup-test: .venv/setup
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	@touch $@

.venv/setup-compare: .venv/setup
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[compare]'
	@touch $@

setup: .venv/setup

index dataset doctor tokenizer train plot evaluate: .venv/setup
	@$(RUN) scripts/$@.py $(WORK)

dataset-%: .venv/setup
	@$(RUN) scripts/dataset.py --limit $* $(WORK)

train-bin: .venv/setup
	@$(RUN) scripts/train_bin.py $(WORK)

sample: .venv/setup
	@$(RUN) sample.py $(WORK)

compare: .venv/setup-compare
	@$(RUN) bench/compare.py $(WORK)

demo: .venv/setup-demo
	@$(RUN) scripts/demo.py $(if $(filter command,$(firstword $(origin ROOT))),--root "$(ROOT)") $(ARGS)

test: .venv/setup-test
	.venv/bin/ruff check
	.venv/bin/mypy
	$(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

test-%: .venv/setup-test
	$(RUN) -m pytest -k '$*' $(ARGS)

clean:
	@mkdir -p "$(ROOT)/data"
	find "$(ROOT)/data" -maxdepth 1 '(' -name '*_[0-9]*.txt' -o -name 'shard-*.txt' -o -name manifest.json ')' -delete
	@# What begins like a song's document is one.
	find "$(ROOT)/data" -maxdepth 1 -name '*.txt' -exec awk \
		'FNR == 1 && /^# tempo=[0-9]+ meter=/ { printf "%s%c", FILENAME, 0 } { nextfile }' {} + | xargs -0 rm -f
	rm -f "$(ROOT)"/cache/index.sqlite "$(ROOT)"/cache/doctor.html "$(ROOT)"/cache/tokenizer*.json \
		"$(ROOT)"/train/*.bin "$(ROOT)"/train/*.npy "$(ROOT)"/train/meta.json \
		"$(ROOT)"/train/copies.songs.txt
