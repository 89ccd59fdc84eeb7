# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl: what a person types.

Runs in the session, as any user; what needs rights is asked of kjumpd.  Prints results to stdout,
errors as one sentence to stderr, and ends with the error's exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump import VERSION
from kjump import settings as configuration
from kjump.cli import dropins, show
from kjump.cli.client import Client
from kjump.errors import (
    BadRequest,
    Internal,
    KjumpError,
    NoImage,
    NoTarget,
    ServiceUnreachable,
    TargetMapped,
    UnsuitableFile,
    table,
)

if TYPE_CHECKING:
    from kjump.image.read import Image

UPDATE_INITRDS = "/usr/libexec/kjump/update-initrds"

Options = argparse.Namespace


def exit_codes() -> str:
    """The exit codes, from the one table of errors."""
    lines = ["exit codes:", "    0  done", "    1  an error without a code of its own"]
    codes = sorted((cls.exit_code, name) for name, cls in table().items())
    lines += [f"  {code:3}  {name}" for code, name in codes]
    return "\n".join(lines)


# -- printing ------------------------------------------------------------------------------------


def put(options: Options, document: Any, text: Callable[[], str]) -> None:
    """Print a document as JSON or as text."""
    if options.json:
        print(json.dumps(document, indent=2, default=str))
    elif not getattr(options, "quiet", False):
        print(text())


def _colour() -> bool:
    return show.wants_colour(sys.stdout)


def _whole(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report from the bus with everything in it: its own JSON text, opened."""
    try:
        found = json.loads(report["json"])
    except (KeyError, ValueError):
        return dict(report)
    return found if isinstance(found, dict) else dict(report)


# -- commands --------------------------------------------------------------------------------------


def status(options: Options) -> int:
    values = Client().properties()
    values["LastCycle"] = _whole(values["LastCycle"]) if values.get("LastCycle") else {}
    put(options, values, lambda: show.status_text(values, colour=_colour()))
    return 0


def can_hibernate(options: Options) -> int:
    answer, reasons = Client().can_hibernate()
    document = {
        "answer": answer,
        "reasons": [{"code": code, "sentence": sentence} for code, sentence in reasons],
    }
    text = "\n".join(
        part
        for part in (
            show.paint(answer, show.COLOURS.get(answer, show.BOLD), on=_colour()),
            show.reasons_text(reasons),
        )
        if part
    )
    put(options, document, lambda: text)
    if answer in ("yes", "challenge"):
        return 0
    cls = table().get(reasons[0][0]) if reasons else None
    return cls.exit_code if cls else 1


def hibernate(options: Options) -> int:
    from kjump.session.systemd import kernel_hibernation, systemd_bus

    wanted = {}
    if options.fallback:
        wanted["fallback"] = True
    if options.ignore_inhibitors:
        wanted["ignore_inhibitors"] = True
    # Set for systemd-hibernate.service, which is where it is looked for with systemd-sleep as well.
    if systemd_bus.says_no(os.environ.get(systemd_bus.FREEZE_VARIABLE, "")):
        wanted["freeze"] = False
    try:
        client = Client()
        # Whether anyone is there: from now on only kjumpd knows how far it came.
        client.properties()
    except ServiceUnreachable as error:
        if not options.fallback:
            raise
        chosen = configuration.load().session.fallback
        decision = kernel_hibernation.decide(
            error, jumped=False, fallback=chosen, facts=kernel_hibernation.read_state()
        )
        if not decision.fall_back:
            raise ServiceUnreachable(f"{error.what}  {decision.why_not}") from error
        return _hibernate_by_systemd(error.what)
    with _watched(options):
        report = _whole(client.hibernate(**wanted))
    if report.get("fallback"):
        return _hibernate_by_systemd(str(report.get("what", "")))
    put(options, report, lambda: show.report_text(report, colour=_colour()))
    return 0


def _hibernate_by_systemd(what: str) -> int:
    """Become systemd-sleep; its exit status is ours."""
    from kjump.session.systemd import kernel_hibernation

    print(f"kjumpctl: {what}  The kernel's own hibernation is done instead.", file=sys.stderr)
    sys.stderr.flush()
    program, *arguments = kernel_hibernation.command()
    try:
        os.execv(program, [program, *arguments])
    except OSError as error:
        raise Internal(f"{program} cannot be started: {error.strerror}.") from error


def diagnose(options: Options) -> int:
    from kjump.cli import doctor
    from kjump.session.checks.doctor import FAILED, SKIPPED, Finding, failed

    found = doctor.look()
    trial: dict[str, Any] | None = None
    if any(finding.state == FAILED for finding in found):
        found.append(Finding("dry-run", SKIPPED, "Not tried: correct what failed first."))
    elif not _may_jump(options):
        found.append(Finding("dry-run", SKIPPED, "Not tried.", advice="Try it with: --jump."))
    else:
        try:
            with _watched(options):
                trial = _whole(Client().dry_run())
            found.append(doctor.of_dry_run(trial))
        except KjumpError as error:
            found.append(failed("dry-run", error))
    put(options, doctor.document(found, trial), lambda: doctor.text(found, colour=_colour()))
    return doctor.exit_code(found)


def _may_jump(options: Options) -> bool:
    """Whether the person wants the dry run; asked on a terminal only."""
    if options.jump is not None:
        return bool(options.jump)
    if options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return _asked(
        "Jump to the helper and straight back? The session stands still for some seconds, and if"
        " the jump does not work on this machine, it is lost. Save your work first."
    )


def _asked(question: str) -> bool:
    """A yes or no; the end of the input is a no."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def stage(options: Options) -> int:
    if not options.warm:
        raise BadRequest("Only a warm helper can be staged ahead.", advice="Say: --warm.")
    with _watched(options):
        report = _whole(Client().stage(warm=True))
    put(
        options,
        report,
        lambda: (
            show.report_text(report, colour=_colour())
            if report
            else "A warm helper was there already."
        ),
    )
    return 0


def unstage(options: Options) -> int:
    Client().unstage()
    put(options, {}, lambda: "Nothing is staged.")
    return 0


def image_info(options: Options) -> int:
    document = _image(options)
    put(options, document, lambda: show.table(_flat(document)))
    return 0


@contextmanager
def _opened(options: Options) -> Iterator[Image]:
    """The image that was named, or that on the target, open for reading."""
    from kjump.image.read import Image
    from kjump.image.target import open_image

    with open_image(*_place(options)) as device:
        yield Image(device)


def image_verify(options: Options) -> int:
    from kjump.image import export

    with _opened(options) as image:
        size = export.verify(image, _bar(options, image.superblock.data_pages * 4096))
    put(options, {"verified": size}, lambda: f"Every checksum holds: {size >> 20} MiB of memory.")
    return 0


def image_export(options: Options) -> int:
    from kjump.image import export

    out = Path(options.core)
    try:
        with _opened(options) as image:
            core = export.export(image, out, _bar(options, image.superblock.data_pages * 4096))
    except FileExistsError as error:
        raise BadRequest(f"{out} is there already.", advice="Name another file.") from error
    missing = "" if core.window else "\nThe window's memory was not found; it reads as zeros."
    put(
        options,
        {"core": str(out), "size": core.size, "window": core.window},
        lambda: f"Written: {out}{missing}",
    )
    return 0


def _bar(options: Options, total: int) -> Callable[[int], None]:
    """Progress on standard error, where that is a terminal."""
    if options.json or not sys.stderr.isatty():
        return lambda done: None

    def draw(done: int) -> None:
        percent = min(100, done * 100 // max(total, 1))
        print(f"\r{show.bar(percent)}", end="\n" if done >= total else "", file=sys.stderr)

    return draw


@contextmanager
def _watched(options: Options) -> Iterator[None]:
    """While kjumpd works: how far it is, on standard error, where that is a terminal."""
    if options.json or getattr(options, "quiet", False) or not sys.stderr.isatty():
        yield
        return
    from kjump.cli.client import watch

    def draw(percent: int, message: str) -> None:
        # To the end of the line: what stood there before may have been longer.
        print(f"\r{show.bar(percent)}  {message}\x1b[K", end="", file=sys.stderr, flush=True)

    stop = watch(draw)
    try:
        yield
    finally:
        stop()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _place(options: Options) -> tuple[Path, int | None]:
    """(path, byte offset of the locator or None) of the image that was named, or on the target."""
    spec = str(options.path or configuration.load().target.path)
    if not spec:
        raise NoTarget("No target is configured, and no PATH was given.")
    from kjump.image.target import link
    from kjump.machine.udev import names_a_file

    if not options.path and not names_a_file(spec):
        return link(spec), None
    path = Path(spec)
    if not path.is_file() or _is_copy(path):
        return path, None
    # What lies in an image file is not to be seen through its file system.
    from kjump.session.target import devices

    try:
        found = devices.resolve(os.path.realpath(path))
    except (UnsuitableFile, TargetMapped):
        return path, None
    return found.path, found.locator


def _is_copy(path: Path) -> bool:
    """Whether a file is a copy of a target: it begins with a superblock as anyone reads it."""
    from kjump.image import layout

    try:
        with path.open("rb") as file:
            head = file.read(2 * layout.BLOCK)
    except OSError:
        return True  # opening it as one tells why
    return any(head[at : at + len(layout.MAGIC)] == layout.MAGIC for at in layout.SLOTS)


def _image(options: Options) -> dict[str, Any]:
    from kjump.image import read
    from kjump.image.target import open_image

    path, locator = _place(options)
    try:
        found = read.describe(path, open_image(path, locator))
    except PermissionError as error:
        raise BadRequest(f"{path} cannot be read.", advice="Do it as root.") from error
    except OSError as error:
        raise NoImage(f"{path} cannot be read: {error.strerror}.") from error
    return {"path": str(path), **found}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested document as rows."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 4:
            rows.append((f"{prefix}{key}", f"({len(value)} entries)"))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _entries(options: Options) -> list[dict[str, Any]]:
    # The file is readable by all, so that this works without the daemon; imported here, as the
    # rest of kjumpctl does without the daemon's code.
    from kjump.session.cycle.history import HISTORY, History

    return History(Path(options.file or HISTORY)).entries()


def _entry(options: Options) -> dict[str, Any]:
    """The cycle whose id begins as was said; the newest for "last"."""
    entries, wanted = _entries(options), options.id.lower()
    if wanted == "last":
        found = entries[-1:]
    else:
        found = [e for e in entries if str(e.get("cycle", "")).lower().startswith(wanted)]
    names = {str(entry.get("cycle")) for entry in found}
    if not found or not wanted:
        raise BadRequest(
            f"The history has no cycle {options.id!r}.", advice="See: kjumpctl history."
        )
    if len(names) > 1:
        raise BadRequest(
            f"{len(names)} cycles begin with {options.id!r}.", advice="Say more of the id."
        )
    return found[-1]  # what a later boot told of it is the last word


def history_show(options: Options) -> int:
    entry = _entry(options)
    put(options, entry, lambda: show.report_text(entry, colour=_colour()))
    return 0


def plot(options: Options) -> int:
    from kjump.cli import plot as drawing

    picture = drawing.svg(_entry(options))
    if options.output is None:
        sys.stdout.write(picture)
        return 0
    try:
        Path(options.output).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise BadRequest(
            f"{options.output} cannot be written: {error.strerror}.", advice="Name another file."
        ) from error
    return 0


def history(options: Options) -> int:
    entries = _entries(options)
    put(options, entries, lambda: show.history_text(entries, colour=_colour()))
    return 0


def enable(options: Options) -> int:
    root = Path(options.root)
    changed = dropins.enable(root)
    _tell_systemd(root, changed)
    document = {"changed": [str(path) for path in changed]}

    def text() -> str:
        if not changed:
            return "Already enabled."
        return "\n".join(
            [
                *(f"Written: {path}" for path in changed),
                "logind reads its environment when it starts: reboot, or"
                " systemctl restart systemd-logind.",
            ]
        )

    put(options, document, text)
    return 0


def disable(options: Options) -> int:
    root = Path(options.root)
    changed = dropins.disable(root)
    dropins.offer_again(root)
    _tell_systemd(root, changed)
    document = {"changed": [str(path) for path in changed]}
    put(
        options,
        document,
        lambda: "\n".join(f"Removed: {path}" for path in changed) or "Was not enabled.",
    )
    return 0


def _tell_systemd(root: Path, changed: Sequence[Path]) -> None:
    if changed and dropins.systemd_runs(root):
        subprocess.run(["systemctl", "--system", "daemon-reload"], check=False)
        # kjumpd tells logind what to offer, or does not any more; one that does not run will.
        subprocess.run(
            ["systemctl", "--quiet", "try-reload-or-restart", "kjumpd.service"], check=False
        )


def setup(options: Options) -> int:
    from kjump.cli import setup as making

    if not options.file:
        return _set_up(options)
    if options.dry_run:
        raise BadRequest("With --file there is nothing to choose.", advice="Leave out --dry-run.")
    made = making.make(Path(options.file), making.parse_size(options.size))
    written = making.configure(made.path)
    if not options.no_initrd:
        done = subprocess.run([UPDATE_INITRDS, "--boot-only"], check=False, stdout=sys.stderr)
        if done.returncode:
            raise Internal(
                "The boot initrd could not be made.", advice="See what stands above this line."
            )
    try:
        Client().reload()
    except KjumpError as error:
        print(f"kjumpctl: {error.sentence}", file=sys.stderr)
    document = {"file": str(made.path), "size": made.size, "configuration": str(written)}
    put(
        options,
        document,
        lambda: (
            f"Made: {made.path}, {show.size(made.size)}\nWritten: {written}\n"
            "Leave the file where it is: it cannot be moved, written to or removed (chattr -i"
            " allows that again)."
        ),
    )
    return 0


def _set_up(options: Options) -> int:
    """Choose a target, show it, ask, do it all, and end with the doctor."""
    from kjump.cli import setup as making

    plan = making.choose(making.survey(), making.parse_size(options.size))
    document = {"target": plan.spec, "make": plan.make, "steps": plan.sentences()}
    if options.dry_run:
        put(options, {**document, "done": False}, lambda: "\n".join(plan.sentences()))
        return 0
    print("\n".join(plan.sentences()), file=sys.stderr)
    if not options.yes:
        if not sys.stdin.isatty():
            raise BadRequest("Nobody can be asked here.", advice="Say --yes, or --dry-run.")
        if not _asked("Do that?"):
            return 1
    if os.geteuid():
        raise BadRequest("Only root can set kjump up.", advice="Do it as root.")
    if plan.make:
        making.make(Path(plan.spec), plan.make)
    if plan.write:
        making.configure(plan.spec)
    if not options.no_initrd:
        # It says which initrd it makes, one a line.
        done = subprocess.run([UPDATE_INITRDS], check=False, stdout=sys.stderr)
        if done.returncode:
            raise Internal(
                "The initrds could not be made.", advice="See what stands above this line."
            )
    try:
        Client().reload()
    except KjumpError as error:
        print(f"kjumpctl: {error.sentence}", file=sys.stderr)
    root = Path("/")
    if not dropins.are_enabled(root) and (
        options.yes or _asked("Lead systemctl hibernate and all desktops to kjump?")
    ):
        _tell_systemd(root, dropins.enable(root))
        print(
            "logind reads its environment when it starts: reboot, or"
            " systemctl restart systemd-logind.",
            file=sys.stderr,
        )
    # A script gets no jump that it did not ask for.
    options.jump = False if options.yes else None
    return diagnose(options)


def update_initrd(options: Options) -> int:
    command = [UPDATE_INITRDS, *options.arguments]
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise Internal(
            f"{UPDATE_INITRDS} cannot be started: {error.strerror}.", advice="Install kjump again."
        ) from error
    return 1 if code else 0


def reload(options: Options) -> int:
    warnings = Client().reload()
    put(options, {"warnings": warnings}, lambda: "\n".join(warnings) or "Configuration read.")
    return 0


# -- the command line -------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    out = argparse.ArgumentParser(
        prog="kjumpctl",
        description="Hibernation by kexec jump.",
        epilog=exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--version", action="version", version=f"kjump {VERSION}")
    commands = out.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str,
        function: Callable[[Options], int],
        text: str,
        where: Any = commands,
        default: Any = False,
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = where.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        sub.add_argument("--json", action="store_true", default=default, help="print JSON")
        return sub

    command("status", status, "Show state, target, window and the last cycle.")
    command(
        "can-hibernate", can_hibernate, "Tell whether the machine can, and every reason why not."
    )
    sub = command("hibernate", hibernate, "Hibernate, and report when the session runs again.")
    sub.add_argument("-q", "--quiet", action="store_true", help="print only what went wrong")
    sub.add_argument(
        "--ignore-inhibitors", action="store_true", help="also while a program blocks sleep"
    )
    sub.add_argument(
        "--fallback", action="store_true", help="by systemd-sleep where kjump cannot; as root"
    )
    sub = command("stage", stage, "Start the helper kernel ahead of the next hibernation.")
    sub.add_argument("--warm", action="store_true", help="keep it running (the only kind there is)")
    sub = command("doctor", diagnose, "Check everything, and say what to do about it.")
    jumps = sub.add_mutually_exclusive_group()
    jumps.add_argument(
        "--jump",
        "--yes",
        dest="jump",
        action="store_true",
        default=None,
        help="jump to the helper and back as a dry run, without asking",
    )
    jumps.add_argument("--no-jump", dest="jump", action="store_false", help="do not, nor ask")
    command("unstage", unstage, "Unload a helper that was started ahead.")
    image = commands.add_parser("image", help="Look at an image.")
    images = image.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    sub = command("info", image_info, "Describe the image on the target.", images)
    default = "default: the configured target"
    sub.add_argument("path", nargs="?", metavar="PATH", help=default)
    sub = command("verify", image_verify, "Read all of an image and check it.", images)
    sub.add_argument("path", nargs="?", metavar="PATH", help=default)
    sub = command("export", image_export, "Write an image as an ELF core.", images)
    sub.add_argument("core", metavar="FILE", help="the core to write; must not be there yet")
    sub.add_argument("path", nargs="?", metavar="PATH", help=default)
    sub = command("setup", setup, "Choose or make a target, configure it, and check everything.")
    sub.add_argument(
        "--file",
        metavar="PATH",
        help="make this file, which is not there yet, and configure it; nothing else",
    )
    sub.add_argument("--yes", action="store_true", help="do not ask (and do not jump)")
    sub.add_argument("--dry-run", action="store_true", help="only say what would be done")
    sub.add_argument(
        "--size",
        metavar="SIZE",
        help="bytes, or with K, M, G, T behind; default: memory, one hundredth of it and 64 MiB",
    )
    sub.add_argument("--no-initrd", action="store_true", help="leave the boot initrd alone")
    sub = command("history", history, "Show all cycles, or one.")
    sub.add_argument("--file", help=argparse.SUPPRESS)
    one = sub.add_subparsers(dest="subcommand", metavar="COMMAND")
    # What was said before "show" holds, too.
    sub = command("show", history_show, "Show one cycle.", one, argparse.SUPPRESS)
    which = "of a cycle, or as much of it as tells it apart; or: last"
    sub.add_argument("id", metavar="ID", help=which)
    sub.add_argument("--file", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    text = "Draw a cycle as an SVG: its phases, and its memory."
    sub = commands.add_parser("plot", help=text, description=text)
    sub.set_defaults(function=plot)
    sub.add_argument("id", nargs="?", default="last", metavar="ID", help=f"{which} (default)")
    sub.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    sub.add_argument("--file", help=argparse.SUPPRESS)
    for name, function, text in (
        ("enable", enable, "Lead systemctl hibernate and logind to kjump."),
        ("disable", disable, "Lead them back."),
    ):
        sub = command(name, function, text)
        sub.add_argument("--root", default="/", metavar="DIR", help="work below this directory")
    command("reload", reload, "Have kjumpd read its configuration again.")
    sub = command("update-initrd", update_initrd, "Build helper and boot initrds again.")
    sub.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="for update-initrds")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """kjumpctl; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.function(options)
        sys.stdout.flush()
    except KjumpError as error:
        if getattr(options, "json", False):
            document = {**error.report(), "sentence": error.sentence}
            print(json.dumps(document, indent=2), file=sys.stderr)
        else:
            name = show.paint("kjumpctl:", show.RED, on=show.wants_colour(sys.stderr))
            print(f"{name} {error.sentence}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        return 130
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
