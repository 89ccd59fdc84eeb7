# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person who sets kjump up sees: ``kjumpctl doctor``, with a dry run that really jumps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .guest import Guest, Shape
from .image import Image
from .steps import (
    CONFIGURATION,
    Scenario,
    at_work,
    ctl,
    ctl_json,
    cycle,
    expect,
    nothing_staged,
    ready,
    require,
    went_well,
    work_holds,
)

ROOT = Path(__file__).parents[2]


def checks(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in document["checks"]}


def ends_with(guest: Guest, code: int, error: str) -> None:
    """The doctor names this first, and nothing is tried."""
    result = ctl(guest, "doctor --json --yes")
    document = json.loads(result.out)
    bad = [check for check in document["checks"] if check["state"] == "failed"]
    require(f"doctor names {error} first", bad and bad[0]["error"] == error, bad)
    require("doctor says what to do", bad[0]["advice"], bad)
    expect("exit code of doctor", result.rc, code)
    expect("dry run", checks(document)["dry-run"]["state"], "skipped")


def doctor(image: Image) -> None:
    """kjumpctl doctor: all is well, a jump to the helper and back, and each failure by its name."""
    with at_work(image, Shape(), 60) as guest:
        result = ctl(guest, "doctor --json --no-jump", user=True)
        document = json.loads(result.out)
        states = {name: check["state"] for name, check in checks(document).items()}
        print(json.dumps(document["checks"], indent=1), flush=True)
        expect("exit code of doctor", result.rc, 0)
        expect(
            "what is not well",
            {n: s for n, s in states.items() if s != "ok"},
            {"dry-run": "skipped"},
        )

        before = guest.check("cat /var/lib/kjump/history.jsonl 2>/dev/null | wc -l")
        result = ctl(guest, "doctor --json --yes")
        document = json.loads(result.out)
        expect("exit code with a jump", result.rc, 0)
        print(json.dumps(document["dry_run"], indent=1), flush=True)
        dry_run = document["dry_run"]
        require("it was the helper that came back", dry_run["result"] == "returned", dry_run)
        require("the helper booted", dry_run["phases"]["helper boot"] > 0.1, dry_run["phases"])
        require("memory was looked at", dry_run["pages"]["data"] > 10000, dry_run["pages"])
        require("there is a map", len(dry_run["map"]["data"]) == 128, dry_run.get("map"))
        said = checks(document)["dry-run"]["sentence"]
        require("its time is reported", said.startswith("To the helper and back in "), said)
        expect("doctor", document["result"], "ok")
        nothing_staged(guest)
        work_holds(guest)
        after = guest.check("cat /var/lib/kjump/history.jsonl 2>/dev/null | wc -l")
        expect("lines of the history", after, before)
        expect("state of the target", ctl(guest, "image info").rc, 60)  # no image was begun
        text = ctl(guest, "doctor").out
        require("as text", "All is well." in text and "\x1b" not in text, text)

        guest.put(b"[Target]\nPath=\n[Helper]\nColour=red\n", CONFIGURATION)
        guest.check("kjumpctl reload")
        ends_with(guest, 30, "NoTarget")
        found = [c for c in ctl_json(guest, "doctor")["checks"] if c["name"] == "configuration"]
        require("the bad line is named", f"{CONFIGURATION}:4: " in found[0]["sentence"], found)
        guest.check(f"rm {CONFIGURATION}; kjumpctl reload; mv /var/lib/kjump/helper-*.img /root/")
        ends_with(guest, 36, "NoHelperInitrd")
        guest.check("mv /root/helper-*.img /var/lib/kjump/; systemctl mask --now kjumpd.service")
        result = ctl(guest, "doctor --json")
        found = json.loads(result.out)["checks"]
        expect("the first check", found[0]["error"], "ServiceUnreachable")
        require("root looks all the same", len(found) > 15, found)
        expect("exit code without kjumpd", result.rc, 69)


def setup(image: Image) -> None:
    """kjumpctl setup from nothing: it finds the partition, makes the initrds, and all is well."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        guest.check(
            "swapoff -a; rm /etc/kjump/kjump.conf.d/*.conf; kjumpctl disable;"
            " rm /var/lib/kjump/helper-* /var/lib/kjump/boot.json; kjumpctl reload"
        )
        plan = ctl_json(guest, "setup --dry-run --size 256M")
        require("it says what it would do", plan["target"].startswith("PARTUUID="), plan)
        require("unasked it does nothing", ctl(guest, "setup --size 256M </dev/null").rc == 2)
        require("nothing was written", guest.run("ls /etc/kjump/kjump.conf.d/*.conf").rc != 0)
        result = ctl(guest, "setup --yes --size 256M", timeout=1500)
        print(result.out, result.err, flush=True)
        expect("exit code of setup", result.rc, 0)
        for words in ("helper initrd of", "boot initrd of"):
            require("progress is shown", words in result.err, result.err)
        require("it ends with the doctor", "next-boot" in result.out, result.out)
        guest.check("systemctl restart systemd-logind")
        found = ctl_json(guest, "doctor --yes")
        expect("doctor", found["result"], "ok")
        guest.start_work(60)
        with cycle(guest) as again:
            last = went_well(again)
            require("the map came through the restore", len(last["map"]["data"]) == 128, last)
            again.check("kjumpctl plot -o /run/cycle.svg; test -s /run/cycle.svg")


def debian_tests(image: Image) -> None:
    """The Debian package's own tests (autopkgtest), those that need a machine of their own too."""
    with Guest(image, Shape()) as guest:
        ready(guest)
        guest.check("kjumpctl disable; mkdir -p /run/debian-tests")
        for name in ("installed", "service", "purge"):  # the last leaves no package
            script = f"/run/debian-tests/{name}"
            guest.put((ROOT / "packaging/debian/tests" / name).read_bytes(), script)
            result = guest.run(
                f"cd /run/debian-tests && AUTOPKGTEST_TMP=/tmp sh {script}", timeout=900
            )
            print(result.out, result.err, flush=True)
            expect(f"exit status of {name}", result.rc, 0)
        require("the package is gone", guest.run("dpkg -s kjump").rc != 0)


ALWAYS: dict[str, Scenario] = {"doctor": doctor}
MORE: dict[str, Scenario] = {"setup": setup, "debian-tests": debian_tests}
