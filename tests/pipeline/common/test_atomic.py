"""Files are replaced whole, or stay as they were."""

import pytest

from pipeline.common.atomic import read_json, replacing, write_json, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path, durable):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1}, durable=durable)
    write_json(path, {"step": 2}, durable=durable)
    assert path.read_text() == '{\n "step": 2\n}\n'
    assert read_json(path) == {"step": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_previous_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "previous")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write()
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]
