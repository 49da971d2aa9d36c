"""Connects the processes of a run before JAX does, and says who is missing."""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from typing import Any, NoReturn

from codet5p_jax.training.cluster import Cluster

NOTICE = 60  # seconds after which the processes that are missing are named, again and again

# A machine that is gone is noticed after 10 + 6 x 5 seconds.
_PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6}
_LONGEST = 1 << 20  # bytes of a message


class Line:
    """Messages to and from another process; a lost connection is no error of `send`.

    Attributes:
      early: messages that came with the last one of the roll call, and are not of it.
    """

    def __init__(self, connection: socket.socket):
        self.socket, self._rest, self._sending = connection, b"", threading.Lock()
        self.early: list[dict[str, Any]] = []
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES.items():
            if hasattr(socket, name):  # not everywhere
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Sends a message."""
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come, once something has; None: the other end is gone, or no process of ours."""
        try:
            data = self.socket.recv(_LONGEST)
            *whole, self._rest = (self._rest + data).split(b"\n")
            messages = [json.loads(line) for line in whole]
        except (OSError, ValueError):
            return None
        fits = len(self._rest) <= _LONGEST and all(isinstance(m, dict) for m in messages)
        return messages if data and fits else None

    def drain(self, deadline: float) -> None:
        """Waits until the other end has closed the connection."""
        with contextlib.suppress(OSError):
            while wait([self.socket], max(deadline - time.monotonic(), 0)):
                if not self.socket.recv(_LONGEST):
                    return


def roll_call(cluster: Cluster, timeout: int) -> tuple[dict[int, Line], list[str]]:
    """Connects all processes with process 0, which closes its port again, for JAX to use.

    Args:
      cluster: the processes.
      timeout: seconds until those who are missing are an error.

    Returns:
      (lines: to process 0, or of process 0 to all others by number; names of all processes).

    Raises:
      OSError: some did not come, or the port of process 0 is taken.
      ValueError: two have the same number, or they were told different ones.
    """
    hello = {"process": cluster.process_id, "of": cluster.num_processes, "at": socket.gethostname()}
    if cluster.process_id == 0:
        return _call(cluster, hello, timeout)
    return _answer(cluster, hello, timeout)


def _call(
    cluster: Cluster, hello: Mapping[str, Any], timeout: int
) -> tuple[dict[int, Line], list[str]]:
    """Process 0's half: it listens where JAX's service is going to, and makes room for it."""
    began, said = time.monotonic(), 0.0
    hellos, lines, strangers = {0: hello}, dict[int, Line](), list[Line]()

    def refuse(error: Exception) -> NoReturn:
        for line in (*lines.values(), *strangers):
            line.send(ended=f"{_name(hello)}: {error}")
            line.drain(time.monotonic() + 1)
            line.socket.close()
        raise error

    with _listen(cluster.address[1]) as server:
        while len(hellos) < cluster.num_processes:
            waited = time.monotonic() - began
            if waited >= min(said + NOTICE, timeout):
                said = waited
                missing = _missing(hellos, cluster)
                if waited >= timeout:
                    refuse(
                        OSError(
                            f"{missing} not come within {timeout} s (--join_timeout); start all "
                            f"processes with --coordinator={cluster.coordinator}"
                        )
                    )
                notice = f"waiting for all processes: after {waited:.0f} s {missing} not come"
                for line in lines.values():
                    line.send(say=notice)
                print(notice, file=sys.stderr, flush=True)
            sockets = [server, *(line.socket for line in (*lines.values(), *strangers))]
            ready = wait(sockets, 0.2)
            if server in ready:
                strangers.append(Line(server.accept()[0]))
            for number, line in list(lines.items()):
                if line.socket in ready and line.receive() is None:  # it may be started again
                    line.socket.close()
                    del lines[number], hellos[number]
            for line in [x for x in strangers if x.socket in ready]:
                messages = line.receive()
                if messages == []:
                    continue  # half a line
                theirs = _hello(messages)
                if theirs is None:  # not one of us
                    line.socket.close()
                    strangers.remove(line)
                    continue
                mistake = _mistake(theirs, hellos, cluster.num_processes)
                if mistake:
                    refuse(ValueError(mistake))
                strangers.remove(line)
                line.send(here=True)
                hellos[theirs["process"]], lines[theirs["process"]] = theirs, line
    for line in strangers:
        line.socket.close()
    names = [_name(hellos[number]) for number in range(cluster.num_processes)]
    for line in lines.values():
        line.send(go=names)
    return lines, names


def _answer(
    cluster: Cluster, hello: Mapping[str, Any], timeout: int
) -> tuple[dict[int, Line], list[str]]:
    """The half of all other processes."""
    began, said = time.monotonic(), 0.0
    line, answered = None, False
    while True:
        waited = time.monotonic() - began
        silent = f"process 0 at {cluster.coordinator} has not answered"
        if not answered and waited >= timeout:
            raise OSError(
                f"{silent} within {timeout} s (--join_timeout); is it started, and can "
                f"{hello['at']} reach that port?"
            )
        # Process 0 speaks for those who are missing, once it has been reached: it may have been
        # started `timeout` after this one, and then waits as long.
        if waited >= 2 * timeout + NOTICE:
            raise OSError(f"process 0 at {cluster.coordinator} has fallen silent")
        if not answered and waited >= said + NOTICE:
            said = waited
            print(f"waiting: after {waited:.0f} s {silent}", file=sys.stderr, flush=True)
        if line is None:
            try:
                line = Line(socket.create_connection(cluster.address, timeout=5))
            except OSError:
                time.sleep(0.3)
            else:
                line.send(**hello)
            continue
        if not wait([line.socket], 0.5):
            continue
        messages = line.receive()
        if messages is None:  # somebody else, or it is started again
            line.socket.close()
            line, answered = None, False
            time.sleep(0.3)
            continue
        answered = answered or bool(messages)
        for at, message in enumerate(messages):
            if "say" in message:
                print(message["say"], file=sys.stderr, flush=True)
            if "ended" in message:
                line.socket.close()
                raise OSError(str(message["ended"]))
            if "go" in message:
                line.early = messages[at + 1 :]
                return {0: line}, message["go"]


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise OSError(
            f"process 0 cannot listen on port {port} of {socket.gethostname()} "
            f"({error.strerror}); choose another port in --coordinator"
        ) from None


def _hello(messages: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """The introduction of a process, if it is one."""
    for message in (messages or [])[:1]:
        if isinstance(message.get("process"), int) and isinstance(message.get("of"), int):
            return {**message, "at": str(message.get("at"))}
    return None


def _mistake(
    theirs: Mapping[str, Any], hellos: Mapping[int, Mapping[str, Any]], number: int
) -> str | None:
    """What is wrong with an introduction, given those before it."""
    if theirs["of"] != number or not 0 <= theirs["process"] < number:
        return (
            f"--num_processes is {number} here, and {_name(theirs)} came as one of {theirs['of']}; "
            "give all processes the same"
        )
    if theirs["process"] in hellos:
        hosts = f"{hellos[theirs['process']]['at']} and {theirs['at']}"
        return (
            f"two processes came as process {theirs['process']}, of hosts {hosts}; give each a "
            "--process_id of its own"
        )
    return None


def _name(hello: Mapping[str, Any]) -> str:
    return f"process {hello['process']} ({hello['at']})"


def _missing(hellos: Mapping[int, Mapping[str, Any]], cluster: Cluster) -> str:
    """`process 2 (host) of 4 has`, or `processes 1, 2 of 4 have`; of many, the first."""
    number, hosts = cluster.num_processes, cluster.hosts
    absent = [f"{i} ({hosts[i]})" if hosts else str(i) for i in range(number) if i not in hellos]
    if len(absent) == 1:
        return f"process {absent[0]} of {number} has"
    more = absent[20:]
    listed = ", ".join(absent[:20]) + f" and {len(more)} more" * bool(more)
    return f"processes {listed} of {number} have"
