"""Script that loads a registered model outside this project and classifies a folder of images with it.

`python clean_process.py MODEL_URI FOLDER` reads `FOLDER/*.img` and writes `FOLDER/answers.json`: the WordNet id of each
file's first guess, and the file of the `transxnet` that was used. It imports mlflow alone, so everything else must come
with the model.
"""

import json
import sys
from pathlib import Path


def main(model_uri: str, folder: Path) -> None:
    """Classify every image of the folder."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(model_uri)
    files = sorted(folder.glob("*.img"))
    table = model.predict([file.read_bytes() for file in files])
    code = sys.modules["transxnet"].__file__
    answers = {file.name: wnid for file, wnid in zip(files, table["wnid"], strict=True)}
    (folder / "answers.json").write_text(json.dumps({"answers": answers, "code": code}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
