"""Runs the server until it receives a signal to stop. Requests that were already accepted are finished first."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from trl_rec.serving.app import build_app
from trl_rec.serving.config import TOKEN, ServingConfig, read_token


logger = logging.getLogger(__name__)


def serve(config: ServingConfig, ready: Callable[[str], object] = lambda address: None) -> None:
    """Serves recommendations until the process gets SIGINT, SIGTERM or SIGHUP.

    After the first signal, the server accepts no further connections and finishes the requests that it has already
    accepted, for at most `stop_seconds`. After the second signal, it sends no further responses. Its worker thread may
    still finish the accepted requests, which can delay the shutdown by up to `stop_seconds`.

    Args:
        config ([`ServingConfig`]): The settings.
        ready (*optional*): Called once, with the address, such as `http://127.0.0.1:8000`, as soon as the server
            accepts requests.
    """
    # 1. Bind the port before the model is loaded, so that a port in use is reported at once. The socket does not
    # listen yet, so nobody can connect.
    with _bound(config) as listener:
        if not _is_local(config.host) and read_token(config) is None:
            logger.warning(
                "everybody who can reach %s can use this server, because there is no token; set the variable %s, or "
                "give --token_file",
                config.host,
                TOKEN,
            )

        # 2. Load the model, or a file of lists computed beforehand, and run the server.
        app = build_app(config)
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=config.stop_seconds,
            )
        )
        port = listener.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        server.ready = lambda: ready(f"http://{host}:{port}")
        with _hang_up(server):
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """A uvicorn server that ends normally after a signal.

    uvicorn's own server raises the signal again, which makes a stop look like a failure.
    """

    ready: Callable[[], object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, then calls `ready`."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops gracefully on the first signal, and without waiting for open connections on the second one."""
        self.force_exit = self.should_exit
        self.should_exit = True


@contextmanager
def _hang_up(server: _Server) -> Iterator[None]:
    """Treats SIGHUP (a closed terminal) like SIGINT and SIGTERM, unless the process ignores it, as under `nohup`."""
    number = getattr(signal, "SIGHUP", None)
    is_main = threading.current_thread() is threading.main_thread()
    if number is None or not is_main or signal.getsignal(number) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, server.handle_exit)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _bound(config: ServingConfig) -> Iterator[socket.socket]:
    """Yields a socket that is bound to the address and does not listen yet."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(
            f"the server cannot listen on port {config.port} of {config.host} ({error.strerror or error}); choose "
            "another --port or --host"
        ) from error
    with listener:
        yield listener


def _is_local(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
