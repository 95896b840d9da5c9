from pathlib import Path

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained


def test_a_file_that_cannot_be_finished_leaves_the_one_before(capsys, tmp_path, small, monkeypatch):
    checkpoint = str(save_pretrained(small, tmp_path / "checkpoint"))
    output = tmp_path / "model.safetensors"
    output.write_bytes(b"before")

    def fails(model: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_model", fails)
    options = ["--hypernetwork", checkpoint, "--output", str(output)]
    assert main(["predict", "deepnets/id/20", *options]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert output.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.safetensors"]
