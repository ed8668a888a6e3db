"""From shards to a registered model: the only package that knows the other three.

Commands: `python -m pipeline.launch`, `pipeline.status`, `pipeline.evaluate`, `pipeline.register`.
Nothing heavy is imported here, so that `--help` answers at once.
"""
