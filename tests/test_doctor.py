"""The doctor: right about this machine, honest about what is missing, and it imports nothing that could hurt."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from raysplat import doctor
from raysplat.cli import main
from raysplat.doctor import Finding, examine


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_is_fit_and_json_says_the_same(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    names = [finding["name"] for finding in report["findings"]]
    assert {"python", "torch", "GPU", "numba", "ffmpeg", "memory", "disk", "shipped weights"} <= set(names)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out
    assert all(name in lines for name in names)


def test_versions_are_those_installed():
    findings = by_name(examine())
    for name in ("numpy", "timm", "safetensors"):
        assert findings[name].found == metadata.version(name)


def test_a_broken_core_library_is_exit_code_1_with_advice(monkeypatch, capsys):
    def fail(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", fail)
    assert main(["doctor"]) == 1
    told = capsys.readouterr()
    assert "libGL.so.1" in told.out and "pip install opencv-python-headless" in told.out and "broken" in told.err


def test_a_missing_extra_is_no_failure(monkeypatch, capsys):
    version = metadata.version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "viser" else version(name))
    monkeypatch.setattr(doctor, "OPTIONAL", {"viser": doctor.OPTIONAL["viser"]})
    assert main(["doctor"]) == 0
    assert "pip install 'raysplat[viewer]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "compiled", "nvcc", "state", "words"),
    [
        (None, False, None, "missing", "pip install 'raysplat[gs]'"),
        ("1.5.3", False, None, "missing", "no nvcc"),
        ("1.5.3", False, "/usr/local/cuda/bin/nvcc", "ok", "1.5.3"),
        ("1.5.3", True, None, "ok", "1.5.3"),
        ("1.5.3+pt211cu130", False, None, "ok", "1.5.3"),
        ("1.5.3+pt24cu124", False, None, "missing", "pt211cu130"),
    ],
)
def test_gsplat_must_fit_torch(monkeypatch, version, compiled, nvcc, state, words):
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    monkeypatch.setattr(doctor, "_compiled_gsplat", lambda: compiled)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: nvcc)
    finding = doctor._gsplat("2.11.0+cu130", "13.0")
    assert finding.state == state and words in f"{finding.found} {finding.advice}"


def test_doctor_never_imports_gsplat_or_optional_libraries():
    code = (
        "import sys; from raysplat.doctor import examine; examine();"
        "assert not {'gsplat', 'viser', 'lpips', 'pycolmap', 'accelerate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
