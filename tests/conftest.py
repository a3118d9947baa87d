"""What every test finds."""

from __future__ import annotations

import pytest

from geometry import precision


@pytest.fixture(autouse=True)
def float32_on_every_cpu(monkeypatch):
    """Tests compare figures to more digits than bfloat16 has, which is the default on some processors."""
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
