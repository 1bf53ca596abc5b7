"""How a remote command ended, as the error stream tells it."""

import msgspec
import pytest

from podwire.cluster.kube.exec import exit_code_of
from podwire.errors import ApiError, ApiUnavailableError


def status(**fields: object) -> bytes:
    return msgspec.json.encode({"kind": "Status", "metadata": {}, **fields})


def test_success_is_zero() -> None:
    assert exit_code_of(status(status="Success")) == 0


def test_the_exit_code_is_a_cause() -> None:
    causes = [{"reason": "ExitCode", "message": "42"}]
    failure = status(status="Failure", reason="NonZeroExitCode", details={"causes": causes})
    assert exit_code_of(failure) == 42


def test_a_command_that_was_never_run_is_an_error() -> None:
    with pytest.raises(ApiError, match="no such container"):
        exit_code_of(status(status="Failure", code=500, message="no such container"))


def test_garbage_is_an_error() -> None:
    with pytest.raises(ApiUnavailableError):
        exit_code_of(b"oops")
