# install · demo · test · test-portable · lint · bench: each sets up .venv itself.
PYTHON ?= python3
PY := .venv/bin/python
DEMO := config/demo/demo_split0_resnet18
DEMO_RUN := exp/demo/HDMNet/split0/resnet18/1shot
DEMO_BASE := exp/demo/PSPNet/split0/resnet18
DEMO_HSNET := exp/demo/HSNet/split0/resnet18/1shot

.PHONY: install demo test test-portable lint bench app app-install demo-encoder photos-model

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PY) -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Photographs with the model that ships; then the whole method in small, on generated pictures
# (docs/demo.md). FULL=1 trains stage 1 as well.
demo: install app-install
	@$(PY) -m util.demo photographs --output exp/photographs.jpg
	$(PY) -m util.prepare demo --root data/demo
ifdef FULL
	$(PY) train_base.py --config $(DEMO)_base.yaml
	$(PY) train.py --config $(DEMO).yaml --opts base_weight null
else
	$(PY) train.py --config $(DEMO).yaml
endif
	$(PY) test.py --config $(DEMO).yaml --baselines --figures 4 --output $(DEMO_RUN)/result.json
	$(PY) test.py --config $(DEMO).yaml --swap-supports --output $(DEMO_RUN)/swapped.json
	$(PY) train.py --config $(DEMO)_hsnet.yaml $(if $(FULL),--opts pretrained $(DEMO_BASE)/best.pth)
	$(PY) test.py --config $(DEMO)_hsnet.yaml --output $(DEMO_HSNET)/result.json
	$(PY) -m util.demo table --results $(DEMO_RUN)/result.json $(DEMO_HSNET)/result.json \
	  --swapped $(DEMO_RUN)/swapped.json
	@echo "pictures: $(DEMO_RUN)/figures"

# How assets/demo_encoder.pth is made: stage 1, longer and on a larger generated set.
demo-encoder: install
	$(PY) -m util.prepare demo --root data/demo_large --lists lists/demo_large --train 24000 --val 500
	$(PY) train_base.py --config $(DEMO)_base.yaml --opts data_root data/demo_large \
	  train_list lists/demo_large/train.txt val_list lists/demo_large/val.txt name encoder epochs 12 amp bf16
	$(PY) -m util.demo encoder --checkpoint $(DEMO_BASE)/encoder/best.pth \
	  --output assets/demo_encoder.pth

# How assets/photos.pth is made (docs/photos.md): DATA names the photographs, half an hour on one core.
PHOTOS := config/photos/photos_all
PHOTOS_RUN := exp/photos/HDMNet/split0/tf_efficientnet_lite0/1shot/all
photos-model: install
	$(PY) train_base.py --config $(PHOTOS)_base.yaml --resume auto --opts $(DATA)
	$(PY) train.py --config $(PHOTOS).yaml --resume auto --opts $(DATA)
	$(PY) -m util.presence fit --config $(PHOTOS).yaml --pictures 200 --opts $(DATA)
	$(PY) -m util.export $(PHOTOS_RUN)/best.pth assets/photos.pth --over encoder --half

# Two test processes of one thread each: the tests are many small things, and some start processes.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(ARGS)

# The numeric tests with the kernels that other processors choose (tests/portable.py).
test-portable: .venv/installed-dev
	$(PY) -m tests.portable $(ARGS)

lint: .venv/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

app-install: install
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-app.txt

# The web page: paint supports, drop in pictures.
app: app-install
	$(PY) app.py $(ARGS)

bench: install
	$(PY) -m benchmark $(ARGS)
