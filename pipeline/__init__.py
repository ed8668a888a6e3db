"""From packed images to a registered model: the one package that uses the other three.

Commands: `python -m pipeline.launch` submits a training, `pipeline.train` is what its processes run, `pipeline.status`
shows how runs stand, `pipeline.evaluate` measures a model, and `pipeline.register` makes a version of it in MLflow.

Each folder uses only those below it:

- `launch`, `train`, `evaluate`, `register`, `status`: the commands
- `weights`: model weights without optimizer state
- `checkpoint`, `data`, `tracking`: resumable state, batches of images, the MLflow run
- `augment`, `engine`, `run`: one image, one optimizer step, the run directory
- `order`, `recipes`: which rank reads which sample, and named trainings
- `config`: the fields of a training
- `common`: helpers for all of them

`serve` is the model as MLflow serves it. Importing this package imports nothing else, so `--help` answers at once.
"""
