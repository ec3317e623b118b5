"""The doctor finds what is wrong, and says how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlascope import doctor
from vlascope.cli import main


def by_name(checks):
    return {check.name: check for check in checks}


def test_a_healthy_environment_has_its_packages():
    checks = by_name(doctor._packages())
    assert checks["torch"].status == "ok"
    assert checks["tyro"].detail == importlib.metadata.version("tyro")


def test_a_missing_and_an_old_package_are_broken(monkeypatch):
    def version(name):
        if name == "zarr":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = by_name(doctor._packages())
    assert (checks["zarr"].status, checks["zarr"].detail) == ("broken", "not installed")
    assert checks["zarr"].fix == "pip install -U 'zarr>=3'"
    assert checks["torch"].status == "broken"
    assert "0.0.1, needs >=2.4" in checks["torch"].detail


def test_a_missing_extra_names_the_install_line(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "pybullet":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = by_name(doctor._extras())["sim"]
    assert check.status == "missing"
    assert check.fix == "pip install 'vlascope[sim]'"


def test_a_torchvision_that_cannot_be_imported_is_found(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    failed = subprocess.CompletedProcess(
        [], 1, "", "Traceback\nRuntimeError: operator torchvision::nms does not exist"
    )
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **kwargs: failed)
    check = doctor._torchvision()
    assert check.status == "broken"
    assert "nms does not exist" in check.detail
    assert "pip uninstall torchvision" in check.fix


@pytest.fixture
def weights(tmp_path) -> Path:
    from safetensors.numpy import save_file

    (tmp_path / "mini-vla").mkdir()
    save_file({"w": np.zeros((3, 5), np.float32)}, tmp_path / "mini-vla" / "model.safetensors")
    return tmp_path


def test_embedded_weights_absent_unreadable_and_changed(weights, tmp_path_factory):
    from vlascope.files import file_hash

    assert doctor._weights(tmp_path_factory.mktemp("none")).status == "broken"
    path = weights / "mini-vla" / "model.safetensors"
    assert doctor._weights(weights).status == "note"
    (weights / doctor.CHECKSUMS).write_text(f"{file_hash(path)}  mini-vla/model.safetensors\n")
    assert doctor._weights(weights).status == "ok"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    changed = doctor._weights(weights)
    assert changed.status == "broken"
    assert "not the one that was shipped" in changed.detail
    path.write_bytes(b"nonsense")
    assert "cannot be read" in doctor._weights(weights).detail


def test_absent_demo_episodes_are_broken(tmp_path):
    assert doctor._episodes(tmp_path).status == "broken"


def test_a_folder_to_come_is_judged_by_its_parent(tmp_path):
    assert by_name(doctor._machine(tmp_path / "a" / "b"))["disk"].status == "ok"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("missing", 0), ("broken", 2)])
def test_exit_code_says_whether_something_needed_is_broken(monkeypatch, capsys, status, code):
    found = [doctor.Check("packages", "torch", status, "2.13", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main(["doctor", "--json"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is (code == 0)
    assert facts["checks"][0]["fix"] == "mend it"
    assert main(["doctor"]) == code
    assert "mend it" in capsys.readouterr().out


def test_the_whole_examination_runs():
    checks = by_name(doctor.examine())
    assert checks["Python"].detail.startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert int(checks["cores"].detail) >= 1
    assert all(check.fix for check in checks.values() if check.status in ("missing", "broken"))
