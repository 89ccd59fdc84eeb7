# SPDX-License-Identifier: GPL-2.0-or-later
"""A private bus with our own bus policy on it, the daemon, and a polkit that is played."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gi.repository import Gio, GLib

from kjump.session.connection import connect

ROOT = Path(__file__).parents[2]
MANAGER = "org.kjump1.Manager"
AUTHORITY = "org.freedesktop.PolicyKit1.Authority"
PATIENCE = 20.0

# Like the system bus: all users may connect, nobody may own a name or call a method unless a
# policy file says so; the tests' own user may play polkit and systemd.
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <policy user="{user}">
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    <allow own="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
    {ours}
  </policy>
  <include>{policy}</include>
</busconfig>
"""


class Client:
    """A bus client that runs the main loop while it waits."""

    def __init__(self, address: str) -> None:
        self.connection: Any = connect(address).con
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.connection.signal_subscribe(
            "org.kjump1", None, None, "/org/kjump1", None, Gio.DBusSignalFlags.NONE, self._hear
        )

    def _hear(self, *arguments: Any) -> None:
        _connection, _sender, _path, _interface, name, parameters = arguments[:6]
        self.heard.append((name, parameters.unpack()))

    def until(self, true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Run the main loop until something is true."""
        end = time.monotonic() + seconds
        while not (found := true()):
            if time.monotonic() > end:
                raise TimeoutError
            if not GLib.MainContext.default().iteration(False):
                time.sleep(0.005)
        return found

    def start(
        self,
        method: str,
        arguments: Any = None,
        *,
        interface: str = MANAGER,
        name: str = "org.kjump1",
        path: str = "/org/kjump1",
        interactive: bool = False,
    ) -> list[Any]:
        """Begin a call; the list gets its result or its `GLib.Error`."""
        box: list[Any] = []

        def finish(connection: Any, result: Any) -> None:
            try:
                box.append(connection.call_finish(result).unpack())
            except GLib.Error as error:
                box.append(error)

        flag = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION
        self.connection.call(
            name,
            path,
            interface,
            method,
            arguments,
            None,
            flag if interactive else Gio.DBusCallFlags.NONE,
            60000,
            None,
            finish,
        )
        return box

    def call(self, method: str, arguments: Any = None, **options: Any) -> Any:
        """A call and its results; raises `Refused`."""
        box = self.start(method, arguments, **options)
        self.until(lambda: box)
        if isinstance(box[0], GLib.Error):
            raise Refused(box[0])
        return box[0]

    def hibernate(self, wanted: dict[str, bool] | None = None, **options: Any) -> list[Any]:
        given = {name: GLib.Variant("b", value) for name, value in (wanted or {}).items()}
        return self.start("Hibernate", GLib.Variant("(a{sv})", (given,)), **options)

    def get(self, name: str) -> Any:
        arguments = GLib.Variant("(ss)", (MANAGER, name))
        return self.call("Get", arguments, interface="org.freedesktop.DBus.Properties")[0]


class Refused(Exception):
    """A D-Bus error, by its name."""

    def __init__(self, error: GLib.Error) -> None:
        self.name = Gio.DBusError.get_remote_error(error)
        self.message = error.message.removeprefix(f"GDBus.Error:{self.name}: ")
        super().__init__(f"{self.name}: {error.message}")


class Daemon:
    """The daemon's process and the files that play its machine."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bus.server", self.address, str(self.folder)],
            env=environment,
            cwd=ROOT,
            stderr=(self.folder / "log").open("ab"),
        )
        if wait:
            connection = connect(self.address).con
            wait_for_name(connection, "org.kjump1", self.process, self.folder / "log")
        return self.process

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        return self.process.wait(20)

    def set(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def unset(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @property
    def done(self) -> list[str]:
        try:
            return (self.folder / "done").read_text().split()
        except OSError:
            return []


def wait_for_name(
    connection: Any, name: str, process: subprocess.Popen[bytes], log: Path | None = None
) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        (owned,) = connection.call_sync(
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "NameHasOwner",
            GLib.Variant("(s)", (name,)),
            None,
            0,
            -1,
            None,
        ).unpack()
        if owned:
            return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{name} did not come: {log.read_text() if log else ''}")
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A test that hangs shows where, and fails."""

    def over(_number: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback()
        raise TimeoutError("The test took too long.")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(90)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a bus of our own."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    # Not pytest's folder: other users have to reach the socket.
    folder = Path(tempfile.mkdtemp(prefix="kjump-bus-"))
    folder.chmod(0o755)
    ours = '<allow own="org.kjump1"/>' if os.getuid() else ""
    (folder / "bus.conf").write_text(
        CONFIG.format(
            folder=folder,
            user=os.getuid(),
            ours=ours,
            policy=ROOT / "config/dbus/org.kjump1.conf",
        )
    )
    bus = subprocess.Popen(
        ["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--nopidfile"],
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while not (folder / "bus").exists():
            assert bus.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        yield f"unix:path={folder}/bus"
    finally:
        bus.terminate()
        bus.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


class Polkit:
    """polkit, played by dbusmock: answers as the test wants, and records the questions."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)
        self.answer(authorized=os.getuid() != 0)

    def _mock(self, method: str, arguments: Any = None) -> Any:
        return self._client.call(
            method,
            arguments,
            interface="org.freedesktop.DBus.Mock",
            name="org.freedesktop.PolicyKit1",
            path="/org/freedesktop/PolicyKit1/Authority",
        )

    def answer(self, *, authorized: bool, challenge: bool = False) -> None:
        code = f"ret = ({authorized}, {challenge}, {{}})"
        self._mock(
            "AddMethod",
            GLib.Variant(
                "(sssss)", (AUTHORITY, "CheckAuthorization", "(sa{sv})sa{ss}us", "(bba{ss})", code)
            ),
        )

    def asked(self) -> list[tuple[str, int]]:
        """(action, flags) of all questions since `forget`."""
        (calls,) = self._mock("GetMethodCalls", GLib.Variant("(s)", ("CheckAuthorization",)))
        return [(arguments[1], arguments[3]) for _time, arguments in calls]

    def forget(self) -> None:
        self._mock("ClearCalls")


@pytest.fixture
def polkit(address: str) -> Iterator[Polkit]:
    pytest.importorskip("dbusmock")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dbusmock",
            "--system",
            "org.freedesktop.PolicyKit1",
            "/org/freedesktop/PolicyKit1/Authority",
            AUTHORITY,
        ],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
        stdout=subprocess.DEVNULL,
    )
    try:
        connection = connect(address).con
        wait_for_name(connection, "org.freedesktop.PolicyKit1", process)
        yield Polkit(address)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def daemon(address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    if os.getuid():
        request.getfixturevalue("polkit")  # nobody but root is allowed without it
    found = Daemon(address, tmp_path)
    found.start()
    try:
        yield found
    finally:
        found.unset("hold")
        found.unset("slow")
        if found.process is not None and found.process.poll() is None:
            found.stop()


@pytest.fixture
def client(address: str, daemon: Daemon) -> Client:
    return Client(address)
