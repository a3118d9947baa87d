"""The server: one page, any number of tabs, until Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from splat.pipeline import pick_device
from viewer.app import App
from viewer.cameras_panel import add_cameras_panel
from viewer.compare_panel import add_compare_panel
from viewer.evaluation import Evaluation
from viewer.evaluation_panel import add_evaluation_panel
from viewer.guard import harden, is_loopback
from viewer.opening import open_thing
from viewer.path_panel import add_path_panel
from viewer.reconstruct_panel import add_reconstruct_panel
from viewer.session import Session
from viewer.training_panel import add_training_panel
from viewer.training_run import TrainingRun
from viewer.view_panel import add_look_panel, add_save_panel, add_scene_panel


def serve(
    things: Sequence[str | Path],
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "auto",
    most_splats: int = 500_000,
) -> int:
    """Show `things` (see `viewer.opening.open_thing`) in a page until Ctrl-C or SIGTERM; returns 0 then.

    The first thing is shown, the others can be chosen and compared; without any the page offers to upload photos. A
    browser draws `most_splats` Gaussians at most; with 0 the server draws all. Raises OSError or ValueError, before
    anything is served, when a thing cannot be opened, the device not used or the port is taken, ImportError when viser
    is missing.
    """
    if most_splats < 0:
        raise ValueError(f"--splats must be 0 or more, got {most_splats}")
    opened = [open_thing(thing) for thing in things]
    for kind, what in ((TrainingRun, "training run"), (Evaluation, "evaluation")):
        if sum(isinstance(thing, kind) for thing in opened) > 1:
            raise ValueError(f"one {what} can be shown at a time; start a second viewer with another --port")
    pick_device(device)
    app = App(most_splats, device)
    try:
        with _until_stopped() as stopped:
            server = start(app, host, port)
            try:
                for thing in opened:
                    app.add(thing)
                # A wait without end would not let signals in on every platform.
                while not stopped.wait(0.5):
                    pass
            finally:
                with contextlib.redirect_stdout(io.StringIO()):
                    server.stop()
    finally:
        app.close()
    print("viewer: stopped", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, instead of interrupting whatever is going on."""
    stopped = threading.Event()
    before = {s: signal.signal(s, lambda *_: stopped.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(app: App, host: str, port: int):
    """Open the port and build a session for each tab that connects; returns viser's server."""
    try:
        import viser
    except ImportError as error:
        raise ImportError("the viewer needs viser: pip install 'raysplat[viewer]'") from error
    if not is_loopback(host):
        print(
            f"viewer: warning: {host} can be reached by other machines; whoever opens the page sees your scenes and "
            "can start reconstructions. An SSH tunnel to 127.0.0.1 is safer.",
            file=sys.stderr,
        )
    with contextlib.redirect_stdout(io.StringIO()):  # its own banner
        server = viser.ViserServer(host=host, port=port, label="raysplat", verbose=False)
    if port and server.get_port() != port:
        server.stop()
        raise OSError(f"port {port} is taken; choose another with --port, or --port 0 for any")
    harden(server, host)
    server.on_client_connect(lambda client: _connect(app, client))
    server.on_client_disconnect(lambda client: _disconnect(app, client))
    name = f"[{host}]" if ":" in host else host
    print(f"viewer: http://{name}:{server.get_port()}  (Ctrl-C stops it)", file=sys.stderr, flush=True)
    return server


def _connect(app: App, client) -> None:
    """Build the panels of a new tab and show the first scene."""
    session = Session(app, client)
    client.gui.main_panel.dock_right()
    add_scene_panel(session)
    tabs = client.gui.add_tab_group()
    # The first tab is the one in front: what one came for.
    if app.evaluation is not None:
        with tabs.add_tab("Scores"):
            add_evaluation_panel(session)
    if app.run is not None:
        with tabs.add_tab("Training"):
            add_training_panel(session)
    empty = not app.exhibits and app.run is None and app.evaluation is None
    if empty:
        with tabs.add_tab("New"):
            session.inbox = add_reconstruct_panel(session)
    with tabs.add_tab("View"):
        add_look_panel(session)
        add_cameras_panel(session)
        add_save_panel(session)
    with tabs.add_tab("Path"):
        add_path_panel(session)
    with tabs.add_tab("Compare"):
        add_compare_panel(session)
    if not empty:
        with tabs.add_tab("New"):
            session.inbox = add_reconstruct_panel(session)
    app.sessions[client.client_id] = session
    if app.exhibits and session.sheet is None:
        session.open(next(iter(app.exhibits)))


def _disconnect(app: App, client) -> None:
    session = app.sessions.pop(client.client_id, None)
    if session is not None:
        session.close()
