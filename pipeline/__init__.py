"""From packed images to a registered model: the one package that uses the other three.

Commands: `python -m pipeline.launch` submits a training, `pipeline.train` is what its processes run, `pipeline.status`
shows how runs stand, `pipeline.evaluate` measures a model, `pipeline.register` makes a version of it in MLflow,
`pipeline.look` draws what it sees, `pipeline.publish` writes it for timm and the Hugging Face hub, and
`pipeline.doctor` looks at the machine.

Each folder uses only those below it:

- `launch`, `doctor`, `train`, `evaluate`, `register`, `publish`, `status`, `look`: the commands
- `weights`: model weights without optimizer state
- `checkpoint`, `data`, `tracking`: resumable state, batches of images, the MLflow run
- `engine`, `run`: one optimizer step, the run directory
- `tasks`, `augment`: what is learned, and one image
- `order`, `recipes`: which rank reads which sample, and named trainings
- `config`: the fields of a training
- `common`: helpers for all of them

`serve` is the model as MLflow serves it. Importing this package imports nothing else, so `--help` answers at once.
"""
