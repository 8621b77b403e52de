"""`--trust-engines` and `--allow-engine-host-code`: off unless asked for, of every command that runs a bundle."""

from __future__ import annotations

import pytest

from flamingo_rt.errors import DataError


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """Options that `load` was called with; it is replaced, and loads nothing."""
    calls: list[dict] = []

    def load(*arguments, **options):
        calls.append(options)
        raise DataError("far enough")

    monkeypatch.setattr("flamingo_rt.loading.load", load)
    return calls


@pytest.fixture(params=["infer", "bench", "prompt compile", "evaluate scenes"])
def command(request, bundle, pictures, tmp_path) -> tuple:
    own = {
        "infer": ("--image", pictures[0]), "bench": (), "evaluate scenes": (),
        "prompt compile": ("--shot", pictures[0], "a", "--out", tmp_path / "x.prompt"),
    }
    return (*request.param.split(), "--model", bundle, *own[request.param])


@pytest.mark.parametrize(("options", "expected"), [
    ((), (False, False)), (("--trust-engines",), (True, False)),
    (("--trust-engines", "--allow-engine-host-code"), (True, True)),
])
def test_every_command_that_runs_a_bundle_passes_the_trust_options_on(run, command, asked, options, expected) -> None:
    assert run(*command, *options).code == 1
    assert [(call["trust_engines"], call["allow_host_code"]) for call in asked] == [expected]


def test_host_code_alone_is_a_usage_error(run, command) -> None:
    outcome = run(*command, "--allow-engine-host-code")
    assert outcome.code == 2
    assert "--allow-engine-host-code (allow_host_code) goes with --trust-engines" in outcome.err
