"""Who may talk to the server: pages of other sites, other machines, taken ports."""

import socket

import pytest

from viewer.app import App
from viewer.guard import allowed, is_loopback
from viewer.server import start


def test_pages_of_other_sites_are_not_served():
    here = "127.0.0.1:8080"
    assert allowed("http://127.0.0.1:8080", here, "127.0.0.1") and allowed(None, here, "127.0.0.1")
    assert allowed("http://localhost:9000", "localhost:9000", "127.0.0.1")  # through a tunnel
    assert allowed("http://[::1]:8080", "[::1]:8080", "::1")
    assert not allowed("https://evil.example", here, "127.0.0.1")
    assert not allowed("http://127.0.0.1:1234", here, "127.0.0.1")
    assert not allowed("null", here, "127.0.0.1")
    assert not allowed("http://evil.example:8080", "evil.example:8080", "127.0.0.1")  # DNS rebinding
    assert not allowed(None, None, "127.0.0.1")
    assert allowed("http://LOCALHOST:8080", "LOCALHOST:8080", "::1")
    for half in ("[::1", "[", "//", "127.0.0.1:8080@evil.example", "[::ffff:10.0.0.1]:8080"):
        assert not allowed(f"http://{half}", half, "127.0.0.1") and not allowed(None, half, "127.0.0.1")
    assert not allowed("http://[::1", here, "127.0.0.1")
    assert allowed("http://big.machine:8080", "big.machine:8080", "0.0.0.0")
    assert not allowed("http://evil.example", "big.machine:8080", "0.0.0.0")


def test_a_taken_port_and_an_open_host_are_told_in_one_line(capsys):
    pytest.importorskip("viser", reason="the viewer needs viser")
    app = App(1000, "cpu")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is taken") as error:
            start(app, "127.0.0.1", port)
    assert "\n" not in str(error.value) and "warning" not in capsys.readouterr().err
    server = start(app, "0.0.0.0", 0)
    assert "warning: 0.0.0.0 can be reached by other machines" in capsys.readouterr().err
    server.stop()
    app.close()


def test_what_is_a_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.4", "example.org", "", "::")))
