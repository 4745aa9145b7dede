"""A model goes to the hub: checked before the training, and nothing is lost where the network fails at its end."""

import pytest
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from cli_support import SMALL, call, fails


class Hub:
    """The hub's client, scripted: `fails` names the call that raises `error`."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.fails, self.error = "", OSError("Connection refused")

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        self._called("create_repo", name, private, exist_ok)

    def upload_folder(
        self, *, repo_id: str, folder_path: object, commit_message: str, ignore_patterns: list[str]
    ) -> None:
        assert ignore_patterns == ["training_state.pt", "checksums.sha256"], "of a checkpoint the model alone"
        self._called("upload_folder", repo_id, str(folder_path))

    def _called(self, name: str, *given: object) -> None:
        self.calls.append((name, *given))
        if name == self.fails:
            raise self.error


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr("opdlm.checkpoints.hub.HfApi", made)
    return made


@pytest.fixture
def words(ar_model, prompts, tmp_path):
    given = ("--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--push-to-hub")
    return ("convert", ar_model, *given)


def test_convert_uploads_at_its_end(words, hub, tmp_path, capsys):
    """Else the flag would be accepted, and the model stay where it is; or a private one be made public."""
    assert call(*words, "me/mine", "--hub-private") == 0
    created = ("create_repo", "me/mine", True, True)
    assert hub.calls == [created, created, ("upload_folder", "me/mine", str(tmp_path / "run" / "model"))]
    assert "uploaded to https://huggingface.co/me/mine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/..mine", "me/"])
def test_a_wrong_name_is_found_before_the_training(name, words, hub, tmp_path, capsys):
    """Else hours of training would end in it."""
    assert "USER/NAME" in fails(capsys, *words, name)
    assert not hub.calls
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [LocalTokenNotFoundError("Token is required"), OSError("Connection refused")])
def test_no_token_is_found_before_the_training(error, words, hub, tmp_path, capsys):
    """Likewise."""
    hub.fails, hub.error = "create_repo", error
    assert "hf auth login" in fails(capsys, *words, "me/mine")
    assert not (tmp_path / "run").exists()


def test_a_failed_upload_loses_nothing(words, hub, tmp_path, capsys):
    """Else the end of a long run would be a traceback, and the user would train again."""
    hub.fails, hub.error = "upload_folder", HTTPError("[Errno 111] Connection refused")
    message = fails(capsys, *words, "me/mine")
    command = f"opdlm push {tmp_path / 'run' / 'model'} me/mine"
    assert command in message
    assert "nothing is lost" in message
    hub.fails = ""
    assert call("generate", tmp_path / "run", "one", "--max-new-tokens", "2") == 0
    assert call(*command.split()[1:]) == 0
    assert hub.calls[-1] == ("upload_folder", "me/mine", str(tmp_path / "run" / "model"))


def test_push_takes_finished_models_only(ar_model, hub, capsys):
    """Else an original, or any folder, could be published as a converted model."""
    assert "opdlm push MODEL USER/NAME" in fails(capsys, "push", "run")
    assert "no converted model" in fails(capsys, "push", ar_model, "me/mine")
    assert not hub.calls
