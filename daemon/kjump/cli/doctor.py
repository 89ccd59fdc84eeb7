# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of ``kjumpctl doctor``: kjumpd's own, and those that only kjumpctl can make.

Runs in the session, as any user.  kjumpd checks the machine (`kjump.session.checks.doctor`); here
kjumpctl checks whether systemd, logind and the boot initrd know kjump.  If kjumpd does not answer,
root's kjumpctl checks the machine itself.  Changes nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump import VERSION
from kjump import settings as configuration
from kjump.cli import dropins, show
from kjump.cli.client import Client
from kjump.errors import BadConfiguration, KjumpError, NoBootResume, ServiceUnreachable, table
from kjump.machine.ranges import PAGE
from kjump.session import kernels
from kjump.session.checks import doctor
from kjump.session.checks.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from kjump.session.checks.facts import read_facts

if TYPE_CHECKING:
    from kjump.session.cycle.history import CycleReport

LISTERS = ("lsinitramfs", "lsinitrd")
"""The programs of initramfs-tools and dracut that list the files of a boot initrd."""
PART = "kjump-resume"
"""The file of kjump's that a boot initrd must contain."""

# -- deciding --------------------------------------------------------------------------------------


def of_settings(settings: configuration.Settings, properties: Mapping[str, Any]) -> list[Finding]:
    """Lines of the configuration that kjump cannot use, and whether kjumpd has read it since it
    changed."""
    name = "configuration"
    out = [
        doctor.warning(name, BadConfiguration(f"{complaint}.")) for complaint in settings.warnings
    ]
    spec = (properties.get("Target") or {}).get("spec")
    if spec is not None and spec != settings.target.path:
        out.append(
            Finding(
                name,
                WARNING,
                "The configuration has changed since kjumpd read it.",
                BadConfiguration.__name__,
                "Have kjumpd read it again: kjumpctl reload.",
            )
        )
    return out or [Finding(name, OK, "Every line of the configuration can be used.")]


def of_service(properties: Mapping[str, Any]) -> Finding:
    """Whether kjumpd and this kjumpctl are of one version."""
    version = str(properties.get("Version", ""))
    if version != VERSION:
        return Finding(
            "service",
            WARNING,
            f"kjumpd {version} is running, but {VERSION} is installed.",
            advice="Restart it: systemctl restart kjumpd.",
        )
    return Finding("service", OK, f"kjumpd {version} answers.")


def of_drop_ins(*, enabled: bool) -> Finding:
    """Whether systemctl hibernate uses kjump."""
    if enabled:
        return Finding("enabled", OK, "systemctl hibernate uses kjump.")
    return Finding(
        "enabled",
        WARNING,
        "systemctl hibernate does not use kjump.",
        advice="Enable it with: kjumpctl enable.",
    )


def of_logind(answer: str, *, enabled: bool) -> Finding:
    """Whether logind offers hibernation to desktops."""
    name = "logind"
    if not enabled:
        return Finding(name, SKIPPED, "Not checked: kjump is not enabled.")
    if answer in ("yes", "challenge"):
        return Finding(name, OK, f"logind offers hibernation ({answer}).")
    return Finding(
        name,
        WARNING,
        f"logind does not offer hibernation: {answer}.",
        advice="It reads its environment when it starts: reboot, or restart logind; see kjumpd(8).",
    )


def of_last_cycle(report: CycleReport) -> Finding:
    """How the last cycle ended."""
    name = "last-cycle"
    if not report:
        return Finding(name, OK, "There was no cycle yet.")
    when = show.moment(report.get("finished"))
    if report.get("result") == "failed":
        return Finding(
            name,
            WARNING,
            f"The last cycle failed on {when}: {report.get('what', '')}",
            str(report.get("error", "")),
            str(report.get("todo", "")),
        )
    return Finding(name, OK, f"The last cycle succeeded on {when}.")


def of_initrd(release: str, path: str, listing: str | None) -> Finding:
    """Whether the boot initrd contains kjump's part.  ``listing``: names of the files in it; None
    if they could not be listed."""
    name = "boot-initrd"
    if listing is None:
        return Finding(
            name,
            SKIPPED,
            f"Not checked: {path or 'no initrd was found'}.",
            advice="Run this as root.",
        )
    if PART in listing:
        return Finding(name, OK, f"{path} contains kjump's part.")
    return doctor.failed(
        name, NoBootResume(f"{path}, of the kernel that boots next, does not contain kjump's part.")
    )


def of_dry_run(report: CycleReport) -> Finding:
    """The result of a dry run that came back."""
    seconds = duration(report)
    pages = (report.get("pages") or {}).get("data")
    saved = f"  {show.size(pages * PAGE)} would be saved now." if pages else ""
    return Finding("dry-run", OK, f"To the helper and back in {seconds:.1f} s.{saved}")


def duration(report: CycleReport) -> float:
    """Seconds from before the jump until after it.

    The session's monotonic clock stands still during the jump, and its wall clock is set to a whole
    second after it, so the sum of the helper's own times may be closer.
    """
    wall = float((report.get("wall") or {}).get("jump", 0.0))
    phases = report.get("phases") or {}
    ours = set(report.get("wall") or {}) - {"jump"}
    return max(wall, sum(float(s) for name, s in phases.items() if name not in ours))


def exit_code(findings: list[Finding]) -> int:
    """0, or the exit code of the first failure."""
    for finding in findings:
        if finding.state == FAILED:
            cls = table().get(finding.error)
            return cls.exit_code if cls else 1
    return 0


def text(findings: list[Finding], *, colour: bool = False) -> str:
    """All findings for a person."""
    colours = {OK: show.GREEN, WARNING: show.YELLOW, FAILED: show.RED, SKIPPED: ""}
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        shade = colours.get(finding.state, "")
        state = show.paint(f"{finding.state:7}", shade, on=colour and bool(shade))
        lines.append(f"{state}  {finding.name:{width}}  {finding.sentence}")
        if finding.state in (WARNING, FAILED):
            name = f" [{finding.error}]" if finding.error else ""
            if finding.advice or name:
                lines.append(f"{'':7}  {'':{width}}  -> {finding.advice}{name}")
    count = {s: sum(f.state == s for f in findings) for s in (FAILED, WARNING)}
    warnings = _counted(count[WARNING], "warning")
    lines.append("")
    if count[FAILED]:
        lines.append(f"{_counted(count[FAILED], 'check')} failed, {warnings}.")
    elif count[WARNING]:
        lines.append(f"Hibernation works as far as it was tried; {warnings}.")
    else:
        lines.append("All is well.")
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def document(findings: list[Finding], dry_run: CycleReport | None) -> dict[str, Any]:
    """All findings as JSON.  ``dry_run``: its report, if there was one."""
    return {
        "result": doctor.worst(findings),
        "checks": [
            dict(zip(("name", "state", "error", "sentence", "advice"), f.texts(), strict=True))
            for f in findings
        ],
        "dry_run": dict(dry_run) if dry_run else None,
    }


# -- looking ---------------------------------------------------------------------------------------


def boot_initrd(release: str) -> str:
    """Path of a kernel's boot initrd, by Debian's or Fedora's name; empty if there is none."""
    names = (f"/boot/initrd.img-{release}", f"/boot/initramfs-{release}.img")
    return next((name for name in names if Path(name).exists()), "")


def listing(path: str) -> str | None:
    """Names of the files in a boot initrd, or None."""
    program = next((found for found in map(shutil.which, LISTERS) if found), None)
    if not path or program is None or not os.access(path, os.R_OK):
        return None
    done = subprocess.run(
        [program, path], check=False, capture_output=True, text=True, errors="replace"
    )
    return done.stdout if not done.returncode else None


def look(client: Callable[[], Client] = Client, root: Path = Path("/")) -> list[Finding]:
    """All findings except the dry run's.  Never raises because of what it finds."""
    settings = configuration.load(root)
    out: list[Finding] = []
    properties: dict[str, Any] = {}
    answer = ""
    try:
        bus = client()
        answer = bus.logind_can_hibernate()
        properties = bus.properties()
        out.append(of_service(properties))
        out += of_settings(settings, properties)
        newer = doctor.newer_modules(settings, os.uname().release)
        for name, state, error, sentence, advice in bus.check():
            found = Finding(name, state, sentence, error, advice)
            out.append(newer if newer and (name, state) == (newer.name, OK) else found)
    except ServiceUnreachable as error:
        out.append(doctor.failed("service", error))
        out += of_settings(settings, {})
        out += without_service(settings)
    releases = kernels.installed(root / "boot", root / "lib/modules")
    path = boot_initrd(releases[-1]) if releases else ""
    out.append(of_initrd(releases[-1] if releases else "", path, listing(path)))
    try:
        enabled = dropins.are_enabled(root)
    except KjumpError as error:
        out.append(doctor.failed("enabled", error))
    else:
        out += [of_drop_ins(enabled=enabled), of_logind(answer, enabled=enabled)]
    if properties:
        out.append(of_last_cycle(properties.get("LastCycle") or {}))
    return out


def without_service(settings: configuration.Settings) -> list[Finding]:
    """The checks of the machine, made by root's kjumpctl because kjumpd does not answer."""
    if os.geteuid():
        return [
            Finding(
                "machine",
                SKIPPED,
                "Not checked: kjumpd does not answer.",
                advice="Run this as root.",
            )
        ]

    facts = read_facts(settings)
    return doctor.examine(facts, doctor.read_surroundings(settings, facts))
