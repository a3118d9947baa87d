"""What viser leaves open, closed: pages of other sites, public share links, and uploads without limits.

This is the one module that reaches behind viser's public interface; tests/test_viewer_guard.py fails if that moves.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from viewer.uploads import Inbox

if TYPE_CHECKING:
    import viser

_POLICY_VIOLATION = 1008


def harden(server: viser.ViserServer, host: str) -> None:
    """Refuse connections from pages of other origins, and the link that would put this server on the internet."""
    from viser import _messages

    socket = server._websock_server
    for message in (_messages.ShareUrlRequest, _messages.FileTransferStartUpload, _messages.FileTransferPart):
        socket.unregister_handler(message)
    server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="medium")

    async def check(connection) -> None:
        live = socket._live_connections[connection.client_id]
        headers = live.request.headers
        if not allowed(headers.get("Origin"), headers.get("Host"), host):
            await live.close(_POLICY_VIOLATION, "this page belongs to another site")

    socket.on_client_connect(check)


def allowed(origin: str | None, asked: str | None, host: str) -> bool:
    """Whether a page at `origin` that asks for `asked` (the Host header) may talk to a server on `host`.

    Browsers always send Origin, and a page cannot forge it; other programs need not. A server on the loopback answers
    to its own names only, because a foreign name may be made to point at 127.0.0.1 (DNS rebinding).
    """
    try:
        name = urlsplit(f"//{asked or ''}").hostname or ""
        page = asked if origin is None else urlsplit(origin).netloc
    except ValueError:  # half an IPv6 address, say
        return False
    return page == asked and (is_loopback(name) or not is_loopback(host))


def limit_uploads(
    client: viser.ClientHandle, inbox: Inbox, on_file: Callable[[str], None], on_refusal: Callable[[str], None]
) -> None:
    """Receive the uploads of a tab into `inbox`; `on_file` gets the label of each that is kept, `on_refusal` why not.

    viser itself would keep whatever is sent in memory.
    """
    from viser import _messages

    socket = client._websock_connection
    for message in (_messages.FileTransferStartUpload, _messages.FileTransferPart):
        socket.unregister_handler(message)

    def acknowledge(message, received: int, total: int) -> None:
        socket.queue_message(
            _messages.FileTransferPartAck(
                source_component_uuid=message.source_component_uuid,
                transfer_uuid=message.transfer_uuid,
                transferred_bytes=received,
                total_bytes=total,
            )
        )

    refused: set[str] = set()

    def refuse(message, size: int, reason: ValueError) -> None:
        # The page waits until all bytes are acknowledged, so it is told that they are.
        refused.add(message.transfer_uuid)
        acknowledge(message, size, size)
        on_refusal(str(reason))

    def start(_client_id, message) -> None:
        try:
            inbox.begin(message.transfer_uuid, message.filename, message.size_bytes, message.part_count)
        except ValueError as error:
            refuse(message, message.size_bytes, error)

    def finish(key: str) -> None:
        try:
            on_file(inbox.finish(key))
        except ValueError as error:
            on_refusal(str(error))

    def part(_client_id, message) -> None:
        if message.transfer_uuid in refused:
            return
        try:
            transfer = inbox.receive(message.transfer_uuid, message.part_index, message.content)
        except ValueError as error:
            refuse(message, len(message.content), error)
            return
        acknowledge(message, transfer.received, transfer.size)
        if transfer.complete:
            client._viser_server._thread_executor.submit(finish, message.transfer_uuid)

    socket.register_handler(_messages.FileTransferStartUpload, start)
    socket.register_handler(_messages.FileTransferPart, part)


def is_loopback(name: str) -> bool:
    """Whether only programs of this machine can reach a server on this host name or address."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
