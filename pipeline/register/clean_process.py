"""Script that loads a registered model outside this project and has it answer about a folder of images.

`python clean_process.py MODEL_URI FOLDER COLUMN` reads `FOLDER/*.img` and writes `FOLDER/answers.json`: a column of the
answer about each file, and the file of the `transxnet` that was used. It imports mlflow alone, so everything else must
come with the model.
"""

import json
import sys
from pathlib import Path


def main(model_uri: str, folder: Path, column: str) -> None:
    """Have the model answer about every image of the folder."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(model_uri)
    files = sorted(folder.glob("*.img"))
    table = model.predict([file.read_bytes() for file in files])
    code = sys.modules["transxnet"].__file__
    answers = {file.name: answer for file, answer in zip(files, table[column], strict=True)}
    (folder / "answers.json").write_text(json.dumps({"answers": answers, "code": code}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
